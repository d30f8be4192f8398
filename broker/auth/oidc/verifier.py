"""Reading an identity token, in the order that leaks least and costs least: form, issuer, key, signature, claims."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from broker.auth.oidc import compact
from broker.auth.oidc.compact import Token
from broker.auth.oidc.key_sets import KeySets
from broker.auth.oidc.refusals import refused
from broker.core.errors import BrokerError, Unauthenticated, Unavailable
from broker.core.identity import ClaimFinding, Patience, Verified
from broker.core.model import TrustRule
from broker.core.reasons import Reason
from broker.core.trust import matching

LEEWAY = 30
LONGEST = 24 * 3600
LAST_MOMENT = 2**33
"""No time in a token is later (the year 2242), so that every one is a date."""

FORMLESS = (
    "The identity token's time {} is missing, or is no number of seconds since 1970; its issuer has to mend that."
)
OVER = "The identity token is over; get a fresh one, and mind that the clocks of its issuer and the broker agree."
EARLY = (
    "The identity token is not valid yet by the broker's clock; the clocks of its issuer and the broker have to agree "
    "within 30 seconds."
)
BACKWARDS = "The identity token ends before it begins; its issuer has to mend that."
LONG = (
    "The identity token lives longer than 24 hours, the most that the broker takes, and a fresh one will too: have its "
    "issuer make shorter ones (Kubernetes: expirationSeconds of the projected serviceAccountToken)."
)

MAX_SUBJECT = 1024
MAX_ID = 256


@dataclass(frozen=True, slots=True)
class _Step:
    reason: str
    finding: ClaimFinding
    sentence: str = ""  # for the caller, where the reason alone does not say what to do


class Verifier:
    """Verifies tokens with the keys that their issuers publish. ``now`` is an argument."""

    def __init__(self, keys: KeySets) -> None:
        self._keys = keys

    def verify(
        self, rules: list[TrustRule], token: Token, now: datetime, patience: Patience | None = None
    ) -> tuple[Verified, list[TrustRule], list[TrustRule]]:
        """What a token says, for which of its issuer's rules, and for which that cannot be told yet.

        Unauthenticated ``TOKEN_…`` at the first fault. A rule counts only if the signature holds under keys that were
        fetched by that rule's own CA: what one rule trusts opens no other, and closes none either.
        """
        issuer = _issuer(token, (rule.issuer for rule in rules))
        sound, open_ = self._sound(issuer, rules, token, patience)
        found = list(_steps(token.claims, {rule.audience for rule in sound}, now.timestamp()))
        for step in found:
            if not step.finding.passed:
                raise _failed(step, token.claims)
        return _verified(issuer, token.claims, found), sound, open_

    def inspect(self, rule: TrustRule, text: str, now: datetime) -> Verified:
        """As ``verify``, for one rule and without stopping at a time or an audience that is wrong: for explaining."""
        token = compact.parse(text)
        issuer = _issuer(token, [rule.issuer])
        self._check_signature(issuer, rule.ca_pem, token)
        found = list(_steps(token.claims, {rule.audience}, now.timestamp()))
        good = [_passed("iss", rule.issuer), _passed("signature", token.algorithm)]
        return _verified(issuer, token.claims, [*(_Step("", each) for each in good), *found])

    def _sound(
        self, issuer: str, rules: list[TrustRule], token: Token, patience: Patience | None
    ) -> tuple[list[TrustRule], list[TrustRule]]:
        """The rules by whose CA the signature holds, and those by whose CA there are no keys at the moment.

        With several CAs none is waited for beyond one fetch while another will do.
        """
        places = {rule.ca_pem for rule in rules}
        faults = self._faults(issuer, places, token, patience, once=len(places) > 1)
        away = {place for place, fault in faults.items() if isinstance(fault, Unavailable)}
        if away and len(places) > 1 and None not in faults.values():
            faults |= self._faults(issuer, away, token, patience, once=False)
            away = {place for place, fault in faults.items() if isinstance(fault, Unavailable)}
        sound = [rule for rule in rules if faults[rule.ca_pem] is None]
        if not sound:
            raise _worst(list(faults.values()))
        return sound, [rule for rule in rules if rule.ca_pem in away]

    def _faults(
        self, issuer: str, places: set[str], token: Token, patience: Patience | None, *, once: bool
    ) -> dict[str, BrokerError | None]:
        if patience and once:
            patience = replace(patience, once=True)
        faults: dict[str, BrokerError | None] = {}
        for ca_pem in sorted(places):
            try:
                self._check_signature(issuer, ca_pem, token, patience)
            except (Unauthenticated, Unavailable) as error:
                faults[ca_pem] = error
            else:
                faults[ca_pem] = None
        return faults

    def _check_signature(self, issuer: str, ca_pem: str, token: Token, patience: Patience | None = None) -> None:
        key = self._keys.key(issuer, ca_pem, token.kid, patience)
        if key is not None and not key.verifies(token):
            # The issuer may have given the name to another key since.
            key = self._keys.key(issuer, ca_pem, token.kid, patience, not_this=key)
        if key is None:
            raise _with_issuer(
                refused(Reason.TOKEN_KEY_UNKNOWN, "header kid", "a key of the issuer", token.kid), issuer
            )
        if token.algorithm not in key.algorithms:
            wanted = " or ".join(sorted(key.algorithms))
            raise _with_issuer(refused(Reason.TOKEN_SIGNATURE, "header alg", wanted, token.algorithm), issuer)
        if not key.verifies(token):
            raise _with_issuer(refused(Reason.TOKEN_SIGNATURE, "signature", "holds", "does not hold"), issuer)


def _worst(faults: list[BrokerError | None]) -> BrokerError:
    """Of what is wrong by each CA: what may be over soon, else what is wrong with the token, else with an issuer."""
    found = [fault for fault in faults if fault is not None]
    return min(found, key=lambda fault: (not isinstance(fault, Unavailable), not fault.reason.startswith("TOKEN_")))


def _issuer(token: Token, known: Iterable[str]) -> str:
    issuer = token.claims.get("iss")
    for one in known:
        if type(issuer) is str and issuer == one:
            return one
    raise refused(Reason.TOKEN_ISSUER, "iss", "the issuer of a trust rule", issuer)


def _steps(claims: dict[str, Any], audiences: set[str], now: float) -> Iterator[_Step]:
    """Every check of the claims that all tokens have."""
    yield from _times(claims, now)
    audience = _audience(claims)
    yield _step(Reason.TOKEN_AUDIENCE, "aud", audience in audiences, " or ".join(sorted(audiences)), claims.get("aud"))
    sub, jti = claims.get("sub"), claims.get("jti")
    yield _step(Reason.TOKEN_CLAIMS, "sub", _text(sub, MAX_SUBJECT), f"a text of 1 to {MAX_SUBJECT} characters", sub)
    if "jti" in claims:
        yield _step(
            Reason.TOKEN_CLAIMS, "jti", _text(jti, MAX_ID), f"absent, or a text of 1 to {MAX_ID} characters", jti
        )


def _times(claims: dict[str, Any], now: float) -> Iterator[_Step]:
    """NumericDates (RFC 7519 2): seconds, which need not be whole."""
    exp, nbf, iat = (_moment(claims.get(name, default)) for name, default in (("exp", None), ("nbf", 0), ("iat", None)))
    soonest, latest = now - LEEWAY, now + LEEWAY
    for name, moment, asked in (("exp", exp, f"after {soonest:.0f}"), ("iat", iat, f"up to {latest:.0f}"),
                                ("nbf", nbf, f"up to {latest:.0f}")):  # fmt: skip
        wrong = FORMLESS.format(name) if moment is None else OVER if name == "exp" else EARLY
        passed = moment is not None and (moment > soonest if name == "exp" else moment <= latest)
        absent = "absent, or " if name == "nbf" else ""
        yield _step(Reason.TOKEN_TIME, name, passed, f"{absent}a number of seconds {asked}", claims.get(name), wrong)
    lasts = exp - iat if exp is not None and iat is not None else 0
    passed = 0 < lasts <= LONGEST
    wrong = BACKWARDS if lasts <= 0 else LONG
    yield _step(
        Reason.TOKEN_TIME, "lifetime", passed, f"up to {LONGEST} seconds (exp less iat)", f"{lasts:.15g}", wrong
    )


def _step(reason: str, name: str, passed: bool, expected: str, found: object, wrong: str = "") -> _Step:  # noqa: FBT001 (a finding's own field)
    shown = ClaimFinding(name=name, passed=passed, expected=matching.shown(expected), found=matching.shown(found))
    return _Step(reason, shown, wrong)


def _passed(name: str, found: str) -> ClaimFinding:
    return ClaimFinding(name=name, passed=True, expected=matching.shown(found), found=matching.shown(found))


def _moment(value: object) -> float | None:
    """A number of seconds: no truth value, no text, nothing negative, nothing that is no date."""
    return value if type(value) in {int, float} and 0 <= value < LAST_MOMENT else None  # type: ignore[operator,return-value]


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
    error = refused(step.reason, finding.name, finding.expected, finding.found, step.sentence)
    known = {"issuer": claims["iss"], "subject": matching.shown(claims.get("sub"))}
    error.facts = {**error.facts, **known}
    return error


def _with_issuer(error: Unauthenticated, issuer: str) -> Unauthenticated:
    error.facts = {**error.facts, "issuer": issuer}
    return error
