"""Reading an identity token, in the order that leaks least and costs least: form, issuer, key, signature, claims."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from broker.auth.oidc import compact
from broker.auth.oidc.compact import Token
from broker.auth.oidc.key_sets import KeySets
from broker.auth.oidc.refusals import refused
from broker.core import matching
from broker.core.errors import BrokerError, Unauthenticated, Unavailable
from broker.core.identity import ClaimFinding, Verified
from broker.core.model import TrustRule

LEEWAY = 30
LONGEST = 24 * 3600
LAST_MOMENT = 2**33
"""No time in a token is later (the year 2242), so that every one is a date."""

MAX_SUBJECT = 1024
MAX_ID = 256


@dataclass(frozen=True, slots=True)
class _Step:
    reason: str
    finding: ClaimFinding


class Verifier:
    """Verifies tokens with the keys that their issuers publish. ``now`` is an argument."""

    def __init__(self, keys: KeySets) -> None:
        self._keys = keys

    def verify(self, rules: list[TrustRule], token: Token, now: datetime) -> tuple[Verified, list[TrustRule]]:
        """What a token says, and for which of its issuer's rules; Unauthenticated ``TOKEN_…`` at the first fault.

        A rule counts only if the signature holds under keys that were fetched by that rule's own CA: what one rule
        trusts opens no other, and closes none either.
        """
        issuer = _issuer(token, (rule.issuer for rule in rules))
        sound = self._sound(issuer, rules, token)
        found = list(_steps(token.claims, {rule.audience for rule in sound}, int(now.timestamp())))
        for step in found:
            if not step.finding.passed:
                raise _failed(step, token.claims)
        return _verified(issuer, token.claims, found), sound

    def inspect(self, rule: TrustRule, text: str, now: datetime) -> Verified:
        """As ``verify``, for one rule and without stopping at a time or an audience that is wrong: for explaining."""
        token = compact.parse(text)
        issuer = _issuer(token, [rule.issuer])
        self._check_signature(issuer, rule.ca_pem, token)
        found = list(_steps(token.claims, {rule.audience}, int(now.timestamp())))
        good = [_passed("iss", rule.issuer), _passed("signature", token.algorithm)]
        return _verified(issuer, token.claims, [*(_Step("", each) for each in good), *found])

    def _sound(self, issuer: str, rules: list[TrustRule], token: Token) -> list[TrustRule]:
        sound: list[TrustRule] = []
        failure: BrokerError | None = None
        for ca_pem in sorted({rule.ca_pem for rule in rules}):
            try:
                self._check_signature(issuer, ca_pem, token)
            except (Unauthenticated, Unavailable) as error:
                failure = error
            else:
                sound += [rule for rule in rules if rule.ca_pem == ca_pem]
        if failure and not sound:
            raise failure
        return sound

    def _check_signature(self, issuer: str, ca_pem: str, token: Token) -> None:
        key = self._keys.key(issuer, ca_pem, token.kid)
        if key is None:
            raise _with_issuer(refused("TOKEN_KEY_UNKNOWN", "header kid", "a key of the issuer", token.kid), issuer)
        if token.algorithm not in key.algorithms:
            wanted = " or ".join(sorted(key.algorithms))
            raise _with_issuer(refused("TOKEN_SIGNATURE", "header alg", wanted, token.algorithm), issuer)
        if not key.verifies(token):
            raise _with_issuer(refused("TOKEN_SIGNATURE", "signature", "holds", "does not hold"), issuer)


def _issuer(token: Token, known: Iterable[str]) -> str:
    issuer = token.claims.get("iss")
    for one in known:
        if type(issuer) is str and issuer == one:
            return one
    raise refused("TOKEN_ISSUER", "iss", "the issuer of a trust rule", issuer)


def _steps(claims: dict[str, Any], audiences: set[str], now: int) -> Iterator[_Step]:
    """Every check of the claims that all tokens have."""
    exp, nbf, iat = (_moment(claims.get(name, default)) for name, default in (("exp", None), ("nbf", 0), ("iat", None)))
    soonest, latest = now - LEEWAY, now + LEEWAY
    good = exp is not None and exp > soonest
    yield _step("TOKEN_TIME", "exp", good, f"an integer after {soonest}", claims.get("exp"))
    good = iat is not None and iat <= latest
    yield _step("TOKEN_TIME", "iat", good, f"an integer up to {latest}", claims.get("iat"))
    good = nbf is not None and nbf <= latest
    yield _step("TOKEN_TIME", "nbf", good, f"absent, or an integer up to {latest}", claims.get("nbf"))
    lasts = exp - iat if exp is not None and iat is not None else 0
    yield _step("TOKEN_TIME", "lifetime", 0 < lasts <= LONGEST, f"1 to {LONGEST} seconds", lasts)
    audience = _audience(claims)
    yield _step("TOKEN_AUDIENCE", "aud", audience in audiences, " or ".join(sorted(audiences)), claims.get("aud"))
    sub, jti = claims.get("sub"), claims.get("jti")
    yield _step("TOKEN_CLAIMS", "sub", _text(sub, MAX_SUBJECT), f"a text of 1 to {MAX_SUBJECT} characters", sub)
    if "jti" in claims:
        yield _step("TOKEN_CLAIMS", "jti", _text(jti, MAX_ID), f"absent, or a text of 1 to {MAX_ID} characters", jti)


def _step(reason: str, name: str, passed: bool, expected: str, found: object) -> _Step:  # noqa: FBT001 (a finding's own field)
    shown = ClaimFinding(name=name, passed=passed, expected=matching.shown(expected), found=matching.shown(found))
    return _Step(reason, shown)


def _passed(name: str, found: str) -> ClaimFinding:
    return ClaimFinding(name=name, passed=True, expected=matching.shown(found), found=matching.shown(found))


def _moment(value: object) -> int | None:
    """A whole number of seconds: no truth value, no float, no text, nothing negative."""
    return value if type(value) is int and 0 <= value < LAST_MOMENT else None


def _text(value: object, most: int) -> bool:
    return type(value) is str and 1 <= len(value) <= most and value.isprintable()


def _audience(claims: dict[str, Any]) -> str | None:
    """The one audience: a text, or a list that holds nothing but one."""
    aud = claims.get("aud")
    if type(aud) is list and len(aud) == 1:
        aud = aud[0]
    return aud if type(aud) is str and aud else None


def _verified(issuer: str, claims: dict[str, Any], steps: list[_Step]) -> Verified:
    sub, jti = claims.get("sub"), claims.get("jti")
    return Verified(
        issuer=issuer,
        subject=str(sub) if _text(sub, MAX_SUBJECT) else "",
        audience=_audience(claims) or "",
        token_id=str(jti) if _text(jti, MAX_ID) else "",
        expires_at=datetime.fromtimestamp(_moment(claims.get("exp")) or 0, UTC),
        claims=claims,
        findings=tuple(step.finding for step in steps),
    )


def _failed(step: _Step, claims: dict[str, Any]) -> Unauthenticated:
    finding = step.finding
    error = refused(step.reason, finding.name, finding.expected, finding.found)
    known = {"issuer": claims["iss"], "subject": matching.shown(claims.get("sub"))}
    error.facts = {**error.facts, **known}
    return error


def _with_issuer(error: Unauthenticated, issuer: str) -> Unauthenticated:
    error.facts = {**error.facts, "issuer": issuer}
    return error
