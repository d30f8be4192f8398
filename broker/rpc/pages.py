"""Page sizes and page tokens (AIP-158).

A token names the last row that was looked at, which the caller may not be allowed to know of: so it is encrypted as
well as authenticated, and padded, and it opens only for the principal, the method and the query it was made for.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from broker.core.call import Call
from broker.core.errors import InvalidRequest
from broker.core.reasons import Reason

DEFAULT_SIZE = 100
MAX_SIZE = 1000
MAX_TOKEN = 1024
NONCE = 12
PADDING = 128

Position = tuple[str | int, ...]


def page_size(asked: int) -> int:
    """How many items to return: 0 asks for 100; InvalidRequest ``PAGE_SIZE_INVALID`` below 0 or above 1000."""
    if not 0 <= asked <= MAX_SIZE:
        raise InvalidRequest(
            Reason.PAGE_SIZE_INVALID, f"The page size is not between 0 and {MAX_SIZE}; 0 means {DEFAULT_SIZE}."
        )
    return asked or DEFAULT_SIZE


class PageTokens:
    """Makes and opens page tokens under ``key`` (32 bytes); replicas with the same key take each other's tokens."""

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError("a page token key has 32 bytes")
        self._cipher = AESGCM(key)

    def __repr__(self) -> str:
        return "PageTokens()"

    def token(self, call: Call, query: tuple[str, ...], position: Position) -> str:
        """The token that continues after ``position``; "" for (), which is the end of the list."""
        if not position:
            return ""
        plain = json.dumps(position).encode("ascii")
        plain += b" " * (-len(plain) % PADDING)
        nonce = secrets.token_bytes(NONCE)
        encrypted = nonce + self._cipher.encrypt(nonce, plain, _binding(call, query))
        return base64.urlsafe_b64encode(encrypted).rstrip(b"=").decode("ascii")

    def open(self, call: Call, query: tuple[str, ...], token: str) -> Position:
        """The position in ``token``, () for ""; InvalidRequest ``PAGE_TOKEN_INVALID`` for a token not made for this."""
        if not token:
            return ()
        try:
            padded = token[:MAX_TOKEN] + "=" * (-len(token[:MAX_TOKEN]) % 4)
            encrypted = base64.b64decode(padded, altchars=b"-_", validate=True)
            plain = self._cipher.decrypt(encrypted[:NONCE], encrypted[NONCE:], _binding(call, query))
        except (ValueError, binascii.Error, InvalidTag) as error:
            raise InvalidRequest(
                Reason.PAGE_TOKEN_INVALID,
                "The page token was not made for this list and this caller; start from the first page.",
            ) from error
        return tuple(json.loads(plain))


def _binding(call: Call, query: tuple[str, ...]) -> bytes:
    return json.dumps([str(call.principal), call.rpc, *query]).encode("ascii")
