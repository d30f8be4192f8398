"""Random names and session tokens.

A session token is ``brs_``, the session's id (22 characters, 128 random bits), a secret (43 characters, 256 random
bits) and a checksum (6 characters, CRC-32 of all before it), all in base62. The checksum lets a scanner tell a leaked
token from other text, and a mistyped one be refused without asking the store.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import struct
import zlib

PREFIX = "brs_"
_DIGITS = string.digits + string.ascii_letters
_PAIRS = [first + second for first in _DIGITS for second in _DIGITS]
_ID, _SECRET, _CHECK = 22, 43, 6
_PICKS = struct.Struct(f"{_ID // 2}H")
_TABLE = _PAIRS * (0x10000 // len(_PAIRS))
_TOKEN = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{_ID + _SECRET + _CHECK}}}", re.ASCII)


def new_id() -> str:
    """22 characters of base62, each as likely as any other: 130 random bits, in no order."""
    while True:
        picks = _PICKS.unpack(secrets.token_bytes(_PICKS.size))
        if max(picks) < len(_TABLE):  # else the first pairs would come more often than the last
            return "".join([_TABLE[pick] for pick in picks])


def id_of(*parts: str) -> str:
    """An id as ``new_id`` makes them, of these very texts: 128 bits of their SHA-256."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return _base62(int.from_bytes(digest[:8], "big"), _ID // 2) + _base62(int.from_bytes(digest[8:16], "big"), _ID // 2)


def new_token(session: str) -> str:
    """A fresh token of a session, by the session's id."""
    open_part = PREFIX + session + _base62(secrets.randbits(256), _SECRET)
    return open_part + _checksum(open_part)


def session_of(token: str) -> str:
    """The id in a token, or "" for what is no token at all: one byte off and it is another text (TL-17)."""
    if len(token) != len(PREFIX) + _ID + _SECRET + _CHECK or not _TOKEN.fullmatch(token):
        return ""
    open_part, checksum = token[:-_CHECK], token[-_CHECK:]
    return open_part[len(PREFIX) : len(PREFIX) + _ID] if _checksum(open_part) == checksum else ""


def hash_of(token: str) -> bytes:
    """What is kept of a token: SHA-256 of the whole text. It has 256 random bits, so nothing slower is needed."""
    return hashlib.sha256(token.encode()).digest()


def _checksum(text: str) -> str:
    return _base62(zlib.crc32(text.encode()), _CHECK)


def _base62(number: int, length: int) -> str:
    pairs = []
    for _ in range((length + 1) // 2):
        number, pair = divmod(number, len(_PAIRS))
        pairs.append(_PAIRS[pair])
    return "".join(reversed(pairs))[-length:]
