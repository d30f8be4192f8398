"""Trust rules: which verified claims become which pipeline, and how much a rule can be trusted itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from broker.core import ports, receipts
from broker.core.addresses import parts
from broker.core.approvable import WEAK_TRUST_RULE
from broker.core.armour import certificates
from broker.core.call import Call
from broker.core.errors import (
    AlreadyExists,
    Exhausted,
    InvalidRequest,
    NotFound,
    Unauthenticated,
    Unavailable,
    WrongState,
)
from broker.core.identity import ClaimFinding, Proof, Verified
from broker.core.kinds import MatcherKind
from broker.core.leases.ending import Ending
from broker.core.model import Matcher, TrustRule
from broker.core.names import check_name
from broker.core.once import once, record
from broker.core.page import Page
from broker.core.policy.guard import BROKER, Guard, of_trust_rule
from broker.core.reasons import Reason
from broker.core.trust import matching
from broker.core.trust.linting import BEST, grade
from broker.core.trust.overlap import check_apart
from broker.core.trust.presets import ANY_ISSUER

__all__ = ["TrustRules", "Verify", "choose", "grade", "match"]

Verify = Callable[[TrustRule, str], Verified]
"""Read a token for one rule without using it up; ``findings`` tell of each step, failed ones too (``auth.oidc``).

Unauthenticated or Unavailable when nothing can be said of the claims, because nothing shows who signed them.
"""

MISMATCH = (
    "The identity token is not what a trust rule of the broker asks for; an operator sees why with `broker trust test` "
    "and a token of the job."
)
MAX_RULES = 1000
"""Trust rules of one issuer: each login looks at all of them."""

MAX_MATCHERS = 32
MAX_CHOICES = 64
MAX_TEXT = 512
MAX_DEPTH = 8
MAX_CA = 64 * 1024
SESSION_SECONDS = range(60, 24 * 3600 + 1)
ISSUER = re.compile(ANY_ISSUER, re.ASCII)


def match(rule: TrustRule, claims: Mapping[str, Any]) -> list[ClaimFinding]:
    """One finding for each matcher; the rule matches when all have passed."""
    return [matching.judge(matcher, claims) for matcher in rule.matchers]


def choose(rules: list[TrustRule], named: str, verified: Verified) -> Proof:
    """The one rule that matches, of an issuer's rules (or the one ``named``).

    Unauthenticated ``TRUST_NO_RULE`` / ``TRUST_CLAIM_MISMATCH`` / ``TRUST_AMBIGUOUS``: the caller is told the reason
    only; ``error.facts`` tells the audit which claim failed, with both values.
    """
    meant = [rule for rule in rules if rule.issuer == verified.issuer]
    if not meant:
        raise _refused(
            Reason.TRUST_NO_RULE,
            "No trust rule of the broker is meant for this identity token; an operator makes one (`broker trust add`).",
            verified,
        )
    if named and not (meant := [rule for rule in meant if rule.name == named]):
        # The same answer as for a rule that does not fit: who calls learns no rule's name.
        header = ClaimFinding(name="broker-trust-rule", passed=False, expected="a rule", found=matching.shown(named))
        raise _refused(Reason.TRUST_CLAIM_MISMATCH, MISMATCH, verified, "", header)
    failures = {rule.name: [each for each in _judge(rule, verified) if not each.passed] for rule in meant}
    fitting = [rule for rule in meant if not failures[rule.name]]
    if not fitting:
        # Of several rules the audit is told of the one that came nearest: that is the one that was meant.
        nearest = min(failures, key=lambda name: len(failures[name]))
        raise _refused(Reason.TRUST_CLAIM_MISMATCH, MISMATCH, verified, nearest, failures[nearest][0])
    if len(fitting) > 1:
        names = ",".join(rule.name for rule in fitting)
        sentence = "Several trust rules fit the identity token; name the one that is meant (--trust-rule)."
        raise _refused(Reason.TRUST_AMBIGUOUS, sentence, verified, names)
    return _proof(fitting[0], verified)


class TrustRules:
    """The noun behind TrustService."""

    def __init__(self, store: ports.Store, guard: Guard, verify: Verify, now: ports.Now) -> None:
        self._store = store
        self._guard = guard
        self._verify = verify
        self._now = now
        self._ending = Ending(store, now)

    def create(self, call: Call, rule: TrustRule) -> TrustRule:
        """Grade and save; InvalidRequest ``TRUST_RULE_WEAK`` names every reason of an F.

        What the caller put into ``grade``, ``findings``, ``created_at`` and ``revision`` counts for nothing.
        Beside the issuer's other rules: Exhausted ``TRUST_RULES_TOO_MANY``, WrongState ``TRUST_RULES_OVERLAP``.
        """
        check_name(rule.name, "trust rule")
        self._guard.check(call, of_trust_rule(rule.name, rule))
        rule = replace(_graded(rule), created_at=self._now(), revision=1)
        self._describe(call, rule)
        if call.validate_only:
            if self._store.get(TrustRule, rule.name):
                raise AlreadyExists(
                    Reason.NAME_TAKEN, f"A trust rule named {rule.name} exists; choose another name, or update it."
                )
            self._check_room(call, rule, self._store.page(TrustRule, **_of_issuer(rule)))
            return rule

        def add(write: ports.Write) -> TrustRule:
            self._check_room(call, rule, write.page(TrustRule, **_of_issuer(rule)))
            write.add(rule)
            return rule

        return once(
            self._store, call, rule.name, add, lambda write, _: _existing(write.get(TrustRule, rule.name), rule.name)
        )

    def update(self, call: Call, rule: TrustRule) -> TrustRule:
        """Grade and save over ``rule.revision``; WrongState ``CHANGED_MEANWHILE`` when that is not the newest.

        The sessions that it has opened end (AZ-24). Asked of the rule as it is and as it shall be, so that nobody gives
        a rule to a pipeline that is not theirs.
        """
        old = self._permitted(call, rule.name)
        self._guard.check(call, of_trust_rule(rule.name, rule))
        new = replace(_graded(rule), created_at=old.created_at, revision=old.revision)
        self._describe(call, new)
        if call.validate_only:
            _unchanged(old, rule.revision)
            self._check_room(call, new, self._store.page(TrustRule, **_of_issuer(new)))
            return new
        with self._store.write(call.intent()) as write:
            if receipts.replay(write, call):
                new = _existing(write.get(TrustRule, rule.name), rule.name)
            else:
                _unchanged(old, rule.revision)
                self._check_room(call, new, write.page(TrustRule, **_of_issuer(new)))
                new = write.replace(old, new)
                receipts.keep(write, call, rule.name)
        self._end_sessions(call, rule.name)
        return new

    def get(self, call: Call, name: str) -> TrustRule:
        """NotFound ``TRUST_RULE_NOT_FOUND``."""
        return self._permitted(call, name)

    def page(self, call: Call, after: tuple[str | int, ...], limit: int) -> Page[TrustRule]:
        """Those that the caller may list; a page may hold fewer than there are to come."""
        self._guard.check(call, BROKER)
        rows = self._store.page(TrustRule, after=after, limit=limit, sound_only=True)
        seen = [row for row in rows if self._guard.permits(call.principal, call.action, of_trust_rule(row.name, row))]
        return Page(items=seen, next=(rows[-1].name,) if len(rows) == limit else ())

    def delete(self, call: Call, name: str) -> None:
        """Forget the rule: from now on its tokens open nothing, and its sessions have ended (AZ-24)."""
        check_name(name, "trust rule")
        found = self._store.get(TrustRule, name)
        self._guard.check(call, of_trust_rule(name, found))
        call.note(trust_rule=name)
        if call.validate_only:
            _existing(found, name)
            return
        with self._store.write(call.intent()) as write:
            if not receipts.replay(write, call):
                # The very row that the permission was decided on (AZ-15).
                write.delete(_existing(found, name))
                receipts.keep(write, call, name)
        self._end_sessions(call, name)

    def test(self, call: Call, name: str, token: str) -> list[ClaimFinding]:
        """What each step of reading the token and each matcher of the rule says. Opens nothing, uses nothing up.

        When the signature does not hold, or cannot be checked because the issuer is away, that is all there is to say:
        nothing is told of claims that anybody could write.
        """
        rule = self._permitted(call, name)
        call.note(trust_rule=name)
        try:
            verified = self._verify(rule, token)
        except (Unauthenticated, Unavailable) as error:
            expected, found = (str(error.facts.get(fact, "")) for fact in ("claim_expected", "claim_found"))
            step = str(error.facts.get("claim", "token"))
            return [ClaimFinding(name=step, passed=False, expected=expected, found=found)]
        steps = {finding.name for finding in verified.findings}
        return [*verified.findings, *(each for each in _judge(rule, verified) if each.name not in steps)]

    def _describe(self, call: Call, rule: TrustRule) -> None:
        call.note(trust_rule=rule.name, issuer=rule.issuer)
        if rule.grade != BEST:
            self._guard.case(call, WEAK_TRUST_RULE)

    def _end_sessions(self, call: Call, name: str) -> None:
        """What the rule has opened until now; a call that was cut off here is finished by its repetition."""
        call.note(count=self._ending.of_rule(call, name))
        record(self._store, call)

    def _check_room(self, call: Call, rule: TrustRule, of_issuer: list[TrustRule]) -> None:
        """Return if the rule can stand beside the others of its issuer: not too many, and none that it overlaps."""
        others = [other for other in of_issuer if other.name != rule.name]
        if len(others) >= MAX_RULES:
            raise Exhausted(
                Reason.TRUST_RULES_TOO_MANY,
                f"There are {MAX_RULES} trust rules for this issuer already; delete some, or let one take more values.",
            )
        check_apart(
            rule,
            others,
            lambda other: self._guard.permits(call.principal, "GetTrustRule", of_trust_rule(other.name, other)),
        )

    def _permitted(self, call: Call, name: str) -> TrustRule:
        check_name(name, "trust rule")
        found = self._store.get(TrustRule, name)
        self._guard.check(call, of_trust_rule(name, found))
        return _existing(found, name)


def _judge(rule: TrustRule, verified: Verified) -> list[ClaimFinding]:
    """Every condition of a rule: the audience, the id that single use needs, and the matchers."""
    audience = ClaimFinding(
        name="aud",
        passed=verified.audience == rule.audience,
        expected=matching.shown(rule.audience),
        found=matching.shown(verified.audience),
    )
    found = matching.shown(verified.token_id or None)
    single = ClaimFinding(
        name="jti",
        passed=bool(verified.token_id),
        expected="an id, since the rule is for single use (--reusable is not)",
        found=found,
    )
    return [audience, *([single] if rule.single_use else []), *match(rule, verified.claims)]


def _proof(rule: TrustRule, verified: Verified) -> Proof:
    claims = {matcher.claim: matching.proven(matcher, verified.claims) or "" for matcher in rule.matchers}
    return Proof(
        rule=rule.name,
        issuer=verified.issuer,
        subject=verified.subject,
        token_id=verified.token_id,
        expires_at=verified.expires_at,
        claims=claims,
        rule_revision=rule.revision,
    )


def _refused(
    reason: str, sentence: str, verified: Verified, rule: str = "", finding: ClaimFinding | None = None
) -> Unauthenticated:
    error = Unauthenticated(reason, sentence)
    facts = {"issuer": verified.issuer, "subject": verified.subject, "token_id": verified.token_id, "trust_rule": rule}
    if finding:
        facts |= {"claim": finding.name, "claim_expected": finding.expected, "claim_found": finding.found}
    error.facts = {name: value for name, value in facts.items() if value}
    return error


def _graded(rule: TrustRule) -> TrustRule:
    """The rule with its grade; InvalidRequest ``TRUST_RULE_INVALID`` or ``TRUST_RULE_WEAK``."""
    check_name(rule.name, "trust rule")
    check_name(rule.pipeline, "pipeline")
    rule = _placed(rule)
    if not 0 < len(rule.matchers) <= MAX_MATCHERS:
        raise _invalid(f"give 1 to {MAX_MATCHERS} matchers")
    for matcher in rule.matchers:
        _check_matcher(matcher)
    if len({matcher.claim for matcher in rule.matchers}) < len(rule.matchers):
        raise _invalid("match each claim once; give several values for one that may vary")
    if rule.max_session_seconds not in SESSION_SECONDS:
        raise _invalid("the longest session is 1 minute to 24 hours")
    letter, findings = grade(rule)
    if letter == "F":
        fatal = " ".join(each.removeprefix("F: ") for each in findings if each.startswith("F"))
        sentence = "The trust rule would not let in those that it means, or others as well."
        raise InvalidRequest(Reason.TRUST_RULE_WEAK, f"{sentence} {fatal}")
    return replace(rule, grade=letter, findings=findings)


def _placed(rule: TrustRule) -> TrustRule:
    """The rule with its CA in one spelling. The issuer is compared with what tokens say, so nothing is made of it."""
    if len(rule.issuer) > MAX_TEXT or not ISSUER.fullmatch(rule.issuer):
        raise _invalid(f"the issuer is written as the tokens have it in iss; {_fault_of(rule.issuer)}")
    if len(rule.audience) > MAX_TEXT or not rule.audience.isprintable():
        raise _invalid(f"the audience is a printable text of at most {MAX_TEXT} characters")
    if not rule.ca_pem:
        return rule
    # Nothing but certificates: an operator who may read rules sees it, and a key must not be in it.
    try:
        found = certificates(rule.ca_pem.encode())
    except ValueError as error:
        raise _invalid(f"the file with the CA of the issuer's server {error}") from None
    if len(found) > MAX_CA:
        raise _invalid(f"the CAs of the issuer's server are longer than {MAX_CA >> 10} KiB together; give fewer")
    return replace(rule, ca_pem=found)


def _fault_of(issuer: str) -> str:
    """What keeps an address from being an issuer's, for people."""
    try:
        _, _, path = parts(issuer)
    except ValueError as error:
        return str(error)
    if ".well-known" in path:
        return "it is the address of a document; leave out what begins with /.well-known"
    return "give https://HOST, or with a port and a path, the host in lower case"


def _check_matcher(matcher: Matcher) -> None:
    path = matching.steps(matcher.claim) if len(matcher.claim) <= MAX_TEXT else []
    if not 1 <= len(path) <= MAX_DEPTH or not all(path) or not matcher.claim.isprintable():
        raise _invalid(
            "a claim's path is names with single slashes between them, and a doubled slash for one in a name"
        )
    most = MAX_CHOICES if matcher.kind is MatcherKind.ONE_OF else 1
    if not 1 <= len(matcher.values) <= most:
        raise _invalid(f"a matcher has one value, or 1 to {MAX_CHOICES} to choose from")
    if not all(1 <= len(value) <= MAX_TEXT and value.isprintable() for value in matcher.values):
        raise _invalid(f"a matcher's value is a printable text of 1 to {MAX_TEXT} characters")


def _invalid(what: str) -> InvalidRequest:
    return InvalidRequest(Reason.TRUST_RULE_INVALID, f"The trust rule is not valid: {what}.")


def _of_issuer(rule: TrustRule) -> dict[str, Any]:
    """What to ask a store for the rules of this one's issuer, and one more than there may be."""
    return {"limit": MAX_RULES + 1, "where": {"issuer": rule.issuer}}


def _unchanged(stored: TrustRule, revision: int) -> None:
    if stored.revision != revision:
        raise WrongState(
            Reason.CHANGED_MEANWHILE,
            f"The trust rule {stored.name} was changed meanwhile; read it again and change that.",
        )


def _existing(rule: TrustRule | None, name: str) -> TrustRule:
    if rule is None:
        raise NotFound(
            Reason.TRUST_RULE_NOT_FOUND,
            f"There is no trust rule named {name}; `broker trust list` shows those there are.",
        )
    return rule
