"""Refusals of an identity token: the caller is told which kind of fault, the audit which claim, with both values."""

from __future__ import annotations

from broker.core import matching
from broker.core.errors import Unauthenticated

SENTENCES = {
    "TOKEN_MALFORMED": "The identity token is not a signed JSON web token that the broker reads.",
    "TOKEN_ALGORITHM": "The identity token is not signed with an algorithm that the broker takes.",
    "TOKEN_ISSUER": "No trust rule of the broker is for the issuer of the identity token.",
    "TOKEN_KEY_UNKNOWN": "The identity token's issuer does not publish the key that it names.",
    "TOKEN_SIGNATURE": "The identity token's signature does not hold.",
    "TOKEN_TIME": "The identity token is not valid now; get a fresh one for each login.",
    "TOKEN_AUDIENCE": "The identity token is for another audience; request it for the broker's own.",
    "TOKEN_CLAIMS": "The identity token lacks a claim that every token has, or has it in a wrong form.",
    "TOKEN_REVIEW_FAILED": "The identity token's cluster does not vouch for it any more; its job may be over already.",
    "TOKEN_NOT_HERE": "An identity token opens a session and does nothing else; log in, and call with its token.",
    "CREDENTIALS_UNKNOWN": "The call's authorization is none that the broker knows; send a bearer token.",
}


def refused(reason: str, claim: str, expected: object, found: object) -> Unauthenticated:
    """The refusal for ``reason``, with what the audit is to know."""
    error = Unauthenticated(reason, SENTENCES[reason])
    error.facts = {
        "claim": claim,
        "claim_expected": matching.shown(expected),
        "claim_found": matching.shown(found),
    }
    return error
