"""Page sizes and page tokens (AIP-158).

A token names the last row that was looked at, which the caller may not be allowed to know of: so it is encrypted as
well as authenticated, and padded, and it opens only for the principal, the method and the query it was made for.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from collections.abc import Sequence
from contextlib import suppress

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
    """Makes page tokens under the first of ``keys`` (32 bytes each), and opens those of any of them.

    Replicas with the same keys take each other's tokens.
    """

    def __init__(self, *keys: bytes) -> None:
        self._ciphers: list[AESGCM] = []
        self.use(keys)

    def use(self, keys: Sequence[bytes]) -> None:
        """From now on these are the keys."""
        if not keys or any(len(key) != 32 for key in keys):
            raise ValueError("a page token key has 32 bytes")
        self._ciphers = [AESGCM(key) for key in keys]

    def __repr__(self) -> str:
        return "PageTokens()"

    def token(self, call: Call, query: tuple[str, ...], position: Position) -> str:
        """The token that continues after ``position``; "" for (), which is the end of the list."""
        if not position:
            return ""
        plain = json.dumps(position).encode("ascii")
        plain += b" " * (-len(plain) % PADDING)
        nonce = secrets.token_bytes(NONCE)
        encrypted = nonce + self._ciphers[0].encrypt(nonce, plain, _binding(call, query))
        return base64.urlsafe_b64encode(encrypted).rstrip(b"=").decode("ascii")

    def open(self, call: Call, query: tuple[str, ...], token: str) -> Position:
        """The position in ``token``, () for ""; InvalidRequest ``PAGE_TOKEN_INVALID`` for a token not made for this."""
        if not token:
            return ()
        try:
            padded = token[:MAX_TOKEN] + "=" * (-len(token[:MAX_TOKEN]) % 4)
            encrypted = base64.b64decode(padded, altchars=b"-_", validate=True)
            plain = self._opened(encrypted, _binding(call, query))
        except (ValueError, binascii.Error, InvalidTag) as error:
            raise InvalidRequest(
                Reason.PAGE_TOKEN_INVALID,
                "The page token was not made for this list and this caller; start from the first page.",
            ) from error
        return tuple(json.loads(plain))

    def _opened(self, encrypted: bytes, binding: bytes) -> bytes:
        for cipher in self._ciphers:
            with suppress(InvalidTag):
                return cipher.decrypt(encrypted[:NONCE], encrypted[NONCE:], binding)
        raise InvalidTag


def _binding(call: Call, query: tuple[str, ...]) -> bytes:
    return json.dumps([str(call.principal), call.rpc, *query]).encode("ascii")
