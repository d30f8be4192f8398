"""What an identity token must look like before it is sent anywhere. Its signature is the broker's to verify."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

from broker_cli.refusal import Exit, Refusal

MAX_TOKEN = 12 * 1024
"""Bytes; what the broker takes in a header is not much more."""

_SIGNED, _ENCRYPTED = 3, 5
"""Parts of a token in compact form."""

_BEFORE = re.compile(r"bearer\b|authorization\b", re.IGNORECASE)
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)


def checked(text: str, origin: str) -> str:
    """``text`` without surrounding white space, if it is a JWS in compact form (RFC 7515); never quoted."""
    token = text.strip()
    if len(token) > MAX_TOKEN or not _COMPACT.fullmatch(token):
        raise Refusal(
            "IDENTITY_TOKEN_INVALID",
            f"What {origin} gave is not an identity token, which is three parts joined by dots, at most {MAX_TOKEN} "
            f"bytes: {_seeming(token)}.",
            Exit.NOT_LOGGED_IN,
        )
    return token


def _seeming(token: str) -> str:
    """What was given in the place of a token, as far as it can be told, and never a piece of it."""
    parts = token.count(".") + 1
    told = {
        "it is empty": not token,
        "it is longer": len(token) > MAX_TOKEN,
        'leave out what stands before it ("Bearer" and its like)': bool(_BEFORE.match(token)),
        "it stands in quotes; leave them out": token[:1] in {'"', "'"},
        "it is JSON; take the token out of it": token[:1] in {"{", "["},
        "it is the name of a variable, which had no value to take its place": token.startswith("$"),
        "there are blanks or line ends in it": len(token.split()) > 1,
        "it is an encrypted one, of five parts, and a signed one is needed": parts == _ENCRYPTED,
        f"it has {parts} part(s)": parts != _SIGNED,
    }
    return next((sentence for sentence, so in told.items() if so), "it has characters that no token has")


def for_audience(token: str, audience: str, cure: str) -> str:
    """``token`` if it was made for ``audience`` (when one is asked for): the broker would only refuse it."""
    found = audiences(token)
    if audience and found != [audience]:
        raise Refusal(
            "IDENTITY_TOKEN_AUDIENCE",
            f"The identity token is for {', '.join(found) or 'nobody'}, and --audience (BROKER_AUDIENCE) "
            f"says {audience}: {cure}",
            Exit.NOT_LOGGED_IN,
        )
    return token


def audiences(token: str) -> list[str]:
    """The audiences in a token's claims, unverified: good for a hint, for no decision about trust."""
    part = token.split(".")[1]
    try:
        claims: Any = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        found = claims["aud"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    listed = found if isinstance(found, list) else [found]
    return [one for one in listed if isinstance(one, str)]


def needed(audience: str, origin: str) -> str:
    """``audience``, where a token cannot be asked for without one."""
    if not audience:
        raise Refusal(
            "AUDIENCE_MISSING",
            f"{origin} makes a token for one audience: say which the broker expects, with --audience or "
            "BROKER_AUDIENCE.",
            Exit.USAGE,
        )
    return audience
