"""SHA-256 thumbprints as other programs write them, brought into one spelling."""

from __future__ import annotations

import base64
import binascii
import re

from broker.core.errors import InvalidRequest
from broker.core.reasons import Reason

MAX_TEXT = 512
_HEX = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{43}=?", re.ASCII)
_PREFIX = re.compile(
    r"(?:pin-)?sha-?(?:2-)?256(?:\s*\([^()]{0,80}\)|\s*fingerprint)?\s*(?://|[:=])\s*|\(stdin\)\s*=\s*",
    re.ASCII | re.IGNORECASE,
)
_SUM = re.compile(r"([0-9a-fA-F]{64})[ \t]+\*?(?:-|[^\s:-]\S*)", re.ASCII)
"""As sha256sum writes it: the digest, and what it is of."""

_OTHERS = {32: "MD5", 40: "SHA-1", 56: "SHA-224", 96: "SHA-384", 128: "SHA-512"}


def thumbprint(text: str) -> str:
    """64 lower-case hexadecimal digits; InvalidRequest ``THUMBPRINT_INVALID`` for what cannot be read in one way only.

    Taken are hexadecimal digits in any case, with colons, blanks or hyphens between them, base64 of either alphabet,
    and the words that openssl, sha256sum, ssh and curl put around them.
    """
    bare = text.strip()
    if len(bare) > MAX_TEXT:
        raise InvalidRequest(
            Reason.THUMBPRINT_INVALID,
            f"The expected thumbprint has more than {MAX_TEXT} characters; give its 64 hexadecimal digits.",
        )
    if (found := _PREFIX.match(bare)) is not None:
        bare = bare[found.end() :]
    bare = bare.strip().strip("\"'")
    if (found := _SUM.fullmatch(bare)) is not None:
        bare = found[1]
    digits = re.sub(r"[\s:-]", "", bare)
    if _HEX.fullmatch(digits):
        return digits.lower()
    if _BASE64.fullmatch(bare) and (raw := _decoded(bare)) is not None:
        return raw.hex()
    raise InvalidRequest(Reason.THUMBPRINT_INVALID, f"The expected thumbprint is no SHA-256: {_why(digits)}.")


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text.rstrip("=").replace("-", "+").replace("_", "/") + "=", validate=True)
    except binascii.Error:
        return None


def _why(digits: str) -> str:
    if digits and re.fullmatch(r"[0-9a-fA-F]+", digits, re.ASCII):
        other = f", as a {_OTHERS[len(digits)]} has" if len(digits) in _OTHERS else ""
        return f"it has {len(digits)} hexadecimal digits{other}, and 64 are wanted"
    return "give its 64 hexadecimal digits, with or without colons, or its 44 characters in base64"
