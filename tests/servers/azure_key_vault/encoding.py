"""JSON and base64url as the specifications want them, and not a hair looser."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any

from .refusals import bad_parameter

_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")


def encode(octets: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def decode(text: object, what: str) -> bytes:
    """Exactly what ``encode`` gives; padding, the other alphabet and stray bits at the end are refused."""
    if not isinstance(text, str) or not _BASE64URL.fullmatch(text):
        raise bad_parameter(f"{what} is not unpadded base64url.")
    try:
        octets = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise bad_parameter(f"{what} is not unpadded base64url.") from error
    if encode(octets) != text:
        raise bad_parameter(f"{what} is not base64url in its one form.")
    return octets


def parse(octets: bytes, what: str) -> dict[str, Any]:
    """One JSON object in UTF-8; a member named twice, NaN and infinities are refused."""
    try:
        value = json.loads(octets.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise bad_parameter(f"{what} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise bad_parameter(f"{what} is not a JSON object.")
    return value


def members(value: object, what: str, required: tuple[str, ...] = (), optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """``value`` as an object that has every required member and none but these."""
    if not isinstance(value, dict):
        raise bad_parameter(f"{what} is not an object.")
    if absent := [each for each in required if each not in value]:
        raise bad_parameter(f"{what} lacks {', '.join(absent)}.")
    if unknown := sorted(set(value) - {*required, *optional}):
        raise bad_parameter(f"{what} has the unknown member {', '.join(unknown)}.")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a member is named twice")
    return dict(pairs)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
