"""Refusals of an identity token: the caller is told which kind of fault, the audit which claim, with both values."""

from __future__ import annotations

from collections.abc import Mapping

from broker.auth.oidc.fetch import Fault
from broker.core.errors import BrokerError, Unauthenticated, Unavailable
from broker.core.reasons import Reason
from broker.core.trust import matching

SENTENCES: Mapping[str, str] = {
    Reason.TOKEN_MALFORMED: (
        "The identity token is not a signed JSON web token that the broker reads; send the one of the CI as it is."
    ),
    Reason.TOKEN_ALGORITHM: (
        "The identity token is not signed with an algorithm that the broker takes (RS256, PS256, ES256, ES384, EdDSA); "
        "have its issuer use one of them."
    ),
    Reason.TOKEN_ISSUER: (
        "No trust rule of the broker is for the issuer of the identity token; a rule's issuer is the token's iss to "
        "the letter, a slash at its end included."
    ),
    Reason.TOKEN_KEY_UNKNOWN: (
        "The identity token's issuer does not publish the key that it names, which was looked for just now; the token "
        "is of another instance of that issuer, or from before it changed its keys."
    ),
    Reason.TOKEN_SIGNATURE: (
        "The identity token's signature does not hold under the key of its issuer; the token was changed, or is not of "
        "that issuer."
    ),
    Reason.TOKEN_TIME: "The identity token is not valid now.",
    Reason.TOKEN_AUDIENCE: "The identity token is for another audience; request it for the broker's own.",
    Reason.TOKEN_CLAIMS: (
        "The identity token lacks a claim that every token has, or has it in a wrong form; its issuer has to mend that."
    ),
    Reason.TOKEN_REVIEW_FAILED: (
        "The identity token's cluster does not vouch for it any more; its job may be over already."
    ),
    Reason.TOKEN_NOT_HERE: "An identity token opens a session and does nothing else; log in, and call with its token.",
    Reason.CREDENTIALS_UNKNOWN: "The call's authorization is none that the broker knows; send a bearer token.",
}

OPERATOR = "tell an operator of the broker, whom `broker trust test` with a token of the job shows the cause."


def refused(reason: str, claim: str, expected: object, found: object, sentence: str = "") -> Unauthenticated:
    """The refusal for ``reason``, with what the audit is to know; ``sentence``: where one reason has several causes."""
    error = Unauthenticated(reason, sentence or SENTENCES[reason])
    error.facts = {
        "claim": claim,
        "claim_expected": matching.shown(expected),
        "claim_found": matching.shown(found),
    }
    return error


def keyless(fault: Fault) -> BrokerError:
    """The refusal while an issuer's keys cannot be had. The caller is told whether to come back, the audit why."""
    error: BrokerError
    if fault.forbidden:
        error = Unauthenticated(
            Reason.ISSUER_KEYS_REFUSED,
            "The identity token's issuer does not let the broker read its keys; trying again will not help: "
            f"{OPERATOR}",
        )
    elif fault.lasting:
        error = Unauthenticated(
            Reason.ISSUER_MISCONFIGURED,
            "The keys of the identity token's issuer are not where the broker may take them from; trying again will "
            f"not help: {OPERATOR}",
        )
    else:
        error = Unavailable(
            Reason.ISSUER_UNAVAILABLE,
            "The keys of the identity token's issuer cannot be had right now; try again, and if that does not help, "
            f"{OPERATOR}",
        )
    error.facts = {"claim": "issuer keys", "claim_found": matching.shown(fault.text)}
    return error
