"""A signed token in its compact form (RFC 7515 7.1), taken apart once and strictly.

Every JSON object is parsed here, once, and everybody who comes later uses that very object: two readings of one text
can never differ.
"""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import dataclass
from typing import Any

from broker.auth.oidc.refusals import refused
from broker.core.reasons import Reason

MAX_TOKEN = 16 * 1024
MAX_KID = 256
TOO_LONG = f"The identity token is longer than {MAX_TOKEN} characters; have its issuer put fewer claims into it."
WRAPPED = (
    "The identity token has characters around or in it that no token has; send it alone, without quotes, line breaks, "
    '"Bearer" or what else was printed with it.'
)
ENCRYPTED = "The identity token is an encrypted one; have its issuer sign it and not encrypt it."
OTHER = (
    "What was sent as the identity token is no signed JSON web token (three parts with dots between them): it was cut, "
    "or is an access token or a password; send the identity token (id_token) of the job."
)
CUT = (
    "The identity token cannot be read: it was cut or changed on its way, or is no signed JSON web token; send it "
    "whole, as its issuer gave it."
)
NAMELESS = "The identity token does not say which of its issuer's keys signed it (kid); its issuer has to."
MAX_DEPTH = 16
CHARACTERS = re.compile(r"[A-Za-z0-9_.-]*", re.ASCII)
ALPHABET = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
ALGORITHMS = frozenset({"RS256", "PS256", "ES256", "ES384", "EdDSA"})
"""All there are. None is symmetric, so no published key can be taken for a secret one."""

FORBIDDEN = ("crit", "b64", "jwk", "jku", "x5u", "x5c", "enc", "zip")
"""Members that change how a token is read, or bring a key of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token that is well formed; nothing it says is believed yet."""

    algorithm: str
    kid: str
    signing_input: bytes
    signature: bytes
    claims: dict[str, Any]

    def __repr__(self) -> str:
        return "Token(…)"


def parse(text: str) -> Token:
    """Take a token apart; Unauthenticated ``TOKEN_MALFORMED`` or ``TOKEN_ALGORITHM``."""
    if len(text) > MAX_TOKEN:
        raise refused(Reason.TOKEN_MALFORMED, "size", f"at most {MAX_TOKEN} characters", str(len(text)), TOO_LONG)
    if not CHARACTERS.fullmatch(text):
        raise refused(Reason.TOKEN_MALFORMED, "characters", "letters, digits, - _ and dots", "others", WRAPPED)
    parts = text.split(".", 5)
    # Counted before anything is decoded: an encrypted token has five, and is nothing for us (AN-10).
    if len(parts) != 3:
        sentence = ENCRYPTED if len(parts) == 5 else OTHER
        raise refused(Reason.TOKEN_MALFORMED, "parts", "3", str(len(parts)), sentence)
    try:
        header, claims = (strict_object(_decoded(part)) for part in parts[:2])
        signature = _decoded(parts[2])
    except ValueError:
        expected = "base64url of JSON objects with no member twice"
        raise refused(Reason.TOKEN_MALFORMED, "form", expected, "", CUT) from None
    return Token(
        algorithm=_algorithm(header),
        kid=_kid(header),
        signing_input=f"{parts[0]}.{parts[1]}".encode("ascii"),
        signature=signature,
        claims=claims,
    )


def strict_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in ``raw`` (UTF-8); ValueError for a member given twice, NaN, infinity, half characters."""
    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if type(found) is not dict:
        raise ValueError("no object")
    _check(found, MAX_DEPTH)
    return found


def _check(value: Any, depth: int) -> None:
    """ValueError for what is nested too deeply, and for half a character, which nobody could write down again."""
    if depth < 0:
        raise ValueError("nested too deeply")
    if isinstance(value, str):
        value.encode("utf-8")
    elif isinstance(value, dict):
        for name, inner in value.items():
            _check(name, depth)
            _check(inner, depth - 1)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, depth - 1)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member is there twice")
    return found


def _no_number(_: str) -> float:
    raise ValueError("no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("out of range")
    return number


def _decoded(part: str) -> bytes:
    """Base64url without padding (RFC 7515 2), in the one form that its bytes have."""
    if not ALPHABET.fullmatch(part):
        raise ValueError("not base64url")
    raw = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    if base64.urlsafe_b64encode(raw).rstrip(b"=") != part.encode("ascii"):
        raise ValueError("not the one form of its bytes")
    return raw


def _algorithm(header: dict[str, Any]) -> str:
    for name in FORBIDDEN:
        if name in header:
            raise refused(Reason.TOKEN_MALFORMED, f"header {name}", "not there", "there")
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise refused(Reason.TOKEN_ALGORITHM, "header alg", " or ".join(sorted(ALGORITHMS)), algorithm)
    return algorithm


def _kid(header: dict[str, Any]) -> str:
    kid = header.get("kid")
    if not isinstance(kid, str) or not 1 <= len(kid.encode()) <= MAX_KID:
        expected = f"a text of 1 to {MAX_KID} bytes"
        raise refused(Reason.TOKEN_MALFORMED, "header kid", expected, type(kid).__name__, NAMELESS)
    return kid
