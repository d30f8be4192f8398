"""How much a trust rule can be trusted: every weakness found, each with the best grade it leaves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from broker.core.kinds import MatcherKind, Preset
from broker.core.model import Matcher, TrustRule
from broker.core.trust import matching
from broker.core.trust.presets import OTHERS_AUDIENCE, PROFILES, PULL_REQUEST, Profile, issuer_of

BEST = "A"

Weakness = tuple[str, str]
"""(the best grade that is left, the reason as a sentence)"""

IDENTITY = re.compile(r"(?:^|/)sub$|(?:^|[^A-Za-z])u{0,2}id$|[a-z](?:Id|ID|Uuid|UUID)$", re.ASCII)
"""Claims that say who somebody is: a pattern there lets in anybody who can register a name that fits."""

NAMING = frozenset({MatcherKind.EXACT, MatcherKind.ONE_OF})
"""How a matcher says whole what a claim is to be."""

PULL_REFS = ("refs/pull/", "refs/merge-requests/")
LONG_SESSION = 3600


def grade(rule: TrustRule) -> tuple[str, tuple[str, ...]]:
    """("A" to "F", reasons): the worst of what was found; an F is not saved."""
    found = sorted(_weaknesses(rule, PROFILES[rule.preset]), reverse=True)
    worst = found[0][0] if found else BEST
    return worst, tuple(f"{letter}: {reason}" for letter, reason in found)


def _weaknesses(rule: TrustRule, profile: Profile) -> Iterator[Weakness]:
    bound = {matcher.claim: matcher for matcher in rule.matchers if matcher.kind in NAMING}
    yield from _place(rule, profile)
    yield from _forms(rule, profile)
    yield from _audience(rule, profile)
    yield from _identity(rule, profile, bound)
    yield from _patterns(rule, profile)
    yield from _trigger(rule, profile, bound)
    yield from _values(rule, profile)
    yield from _hardening(rule, profile, bound)


def _place(rule: TrustRule, profile: Profile) -> Iterator[Weakness]:
    if not profile.issuer.fullmatch(rule.issuer):
        yield "F", f"The issuer is not one of {rule.preset} (it looks like {profile.issuer_form})."
    # What is known of an issuer is asked of every rule for it: no other preset is a way round its conditions.
    owner = issuer_of(rule.issuer)
    if owner not in {None, rule.preset}:
        yield "F", f"The issuer is one of {owner}; take that preset, which knows what its tokens must be asked for."


def _forms(rule: TrustRule, profile: Profile) -> Iterator[Weakness]:
    """Conditions that no token can meet, as the claim is a list, is none, or is not so written; nobody would get in."""
    single = {"sub", "iss", "jti", *profile.trigger, *profile.organisation, *profile.mutable, *profile.flags}
    single |= {claim for group in profile.required for claim in group} | {*profile.started, *profile.refs}
    for matcher in rule.matchers:
        listed = matcher.kind is MatcherKind.CONTAINS
        if matcher.claim == "aud":
            yield "F", "aud is matched by the rule's audience already; leave it out of the matchers."
        elif matcher.claim in profile.lists and not listed:
            yield "F", f"{matcher.claim} is a list, which no text and no pattern fits; write {{contains: VALUE}}."
        elif matcher.claim in single and listed:
            yield "F", f"{matcher.claim} is one value and no list, so contains fits it never; write the value itself."
        narrowing = {claim for claims, _ in profile.hardening for claim in claims}
        yield from _spelling(matcher, single | {*profile.lists} | narrowing)


def _spelling(matcher: Matcher, known: set[str]) -> Iterator[Weakness]:
    """What is written nearly as it has to be: a claim in other letter case, a pattern or blanks in a plain text."""
    claim = next((one for one in known if one.lower() == matcher.claim.lower()), "")
    if claim and matcher.claim not in known:
        yield "F", f"There is no claim {matcher.claim}; it is called {claim}, in these letters."
    if matcher.claim in known and matcher.kind is not MatcherKind.GLOB:
        if any("*" in value for value in matcher.values):
            how = "give it whole" if IDENTITY.search(matcher.claim) else "write {glob: PATTERN} for a pattern"
            yield "F", f"{matcher.claim} is matched by a text, where * stands for itself; {how}."
        if any(value != value.strip() for value in matcher.values):
            yield "F", f"A value for {matcher.claim} begins or ends with a blank, which no token has; leave it out."


def _audience(rule: TrustRule, profile: Profile) -> Iterator[Weakness]:
    if not rule.audience or "*" in rule.audience:
        yield "F", "There is no exact audience, so tokens that were made for others would be taken."
    elif profile.audience and rule.audience != profile.audience:
        yield "F", f"Tokens of {rule.preset} have one audience only, {profile.audience}; no other one can match."
    elif profile.audience:
        yield (
            "B",
            f"Every token of {rule.preset} has this audience, so it does not say that it was made for the broker.",
        )
        if not rule.single_use:
            yield "D", "Any other service that receives such a token can use it here; make tokens single-use."
    elif profile.foreign_audience and profile.foreign_audience.fullmatch(rule.audience):
        # The owner's URL is what every job gets that asks for no audience, so others hold such tokens.
        letter = "F" if rule.preset in {Preset.GITHUB, Preset.KUBERNETES} else "C"
        yield letter, "The audience is the issuer's default, which tokens for others have too; use one of your own."
    elif rule.audience.rstrip("/") == rule.issuer.rstrip("/"):
        letter = "F" if rule.preset is Preset.KUBERNETES else "C"
        yield letter, "The audience is the issuer itself, which is sent such tokens too; use one of your own."
    elif OTHERS_AUDIENCE.fullmatch(rule.audience):
        yield "C", "The audience is another service's, which is sent such tokens too; use one of your own."


def _identity(rule: TrustRule, profile: Profile, bound: dict[str, Matcher]) -> Iterator[Weakness]:
    for group in profile.required:
        if not bound.keys() & set(group):
            yield "F", f"It binds no immutable id: match {' or '.join(group)} exactly."
    if rule.preset is Preset.GENERIC and not any(IDENTITY.search(claim) for claim in bound):
        yield "F", "It binds no immutable id: match sub, or a claim that holds an id, exactly."
    if profile.shared and profile.shared.fullmatch(rule.issuer) and not bound.keys() & set(profile.organisation):
        wanted = " or ".join(profile.organisation)
        yield "F", f"The issuer serves all organisations; match {wanted} exactly."
    for claim, instead in profile.mutable.items():
        if claim in bound and instead not in bound:
            yield "C", f"{claim} is a name that somebody else can take over; bind {instead} too."


def _patterns(rule: TrustRule, profile: Profile) -> Iterator[Weakness]:
    identities = {claim for group in profile.required for claim in group} | {*profile.organisation, *profile.mutable}
    for matcher in rule.matchers:
        if matcher.kind is not MatcherKind.GLOB:
            continue
        if matcher.claim in identities or IDENTITY.search(matcher.claim):
            yield "F", f"{matcher.claim} is an identity and is matched by a pattern; give it whole."
        elif not matcher.values[0].strip("*/"):
            yield "D", f"The pattern for {matcher.claim} fits everything."
        else:
            yield "B", f"{matcher.claim} is matched by a pattern; anybody who can make up such a name gets in."


def _trigger(rule: TrustRule, profile: Profile, bound: dict[str, Matcher]) -> Iterator[Weakness]:
    named = [matcher for matcher in rule.matchers if matcher.claim in profile.trigger]
    if profile.trigger and not any(matcher.claim in bound or profile.trigger_globs for matcher in named):
        yield "F", f"Runs of pull requests are not kept out: match {' or '.join(profile.trigger)} by name."
    for matcher in rule.matchers:
        if matcher.kind is not MatcherKind.GLOB:
            continue
        if matcher in named and _lets_pull_requests_in(matcher, profile):
            yield "F", f"The pattern for {matcher.claim} fits runs of pull requests; name what may log in."
        elif matcher.claim in profile.refs and any(_reaches(matcher, one) for one in PULL_REFS):
            yield "D", f"The pattern for {matcher.claim} fits runs of pull requests; name what may log in."


def _values(rule: TrustRule, profile: Profile) -> Iterator[Weakness]:
    """What is asked for by name, but is no narrowing: a run of an outsider's, a protection that is not there."""
    for matcher in rule.matchers:
        named = matcher.values if matcher.kind in NAMING else ()
        pulls = [value for value in matcher.values if _of_pull_requests(matcher, value, profile)]
        if pulls:
            yield "D", f"Runs of pull requests may log in ({', '.join(pulls)}); their code may be an outsider's."
        started = profile.started.get(matcher.claim, ())
        others = [value for value in named if started and value not in pulls and not _is_of(value, started)]
        if others:
            yield "D", f"{matcher.claim} may be {', '.join(others)}: others than who may write can start such runs."
        if _is_no_flag(matcher, profile):
            yield "D", f"{matcher.claim} keeps nobody out so: match it to {profile.flags[matcher.claim]} alone."
        for claim, pattern, letter, reason in profile.doubtful:
            if claim == matcher.claim and (doubtful := [value for value in named if pattern.fullmatch(value)]):
                yield letter, f"{claim} may be {', '.join(doubtful)}: {reason}."
    yield from _forks(rule)


def _forks(rule: TrustRule) -> Iterator[Weakness]:
    """Buildkite writes a fork's branch with its owner before it, OWNER:BRANCH, and a pattern may fit that."""
    patterns = [one for one in rule.matchers if one.claim == "build_branch" and one.kind is MatcherKind.GLOB]
    if rule.preset is Preset.BUILDKITE and any(set("*:") & set(one.values[0].partition("/")[0]) for one in patterns):
        yield "D", "The pattern for build_branch fits branches of forks (OWNER:BRANCH); name the branches."


def _is_no_flag(matcher: Matcher, profile: Profile) -> bool:
    """Whether a truth value is asked for in a way that leaves the wrong one possible, or the right one not."""
    wanted = profile.flags.get(matcher.claim)
    return wanted is not None and (matcher.kind not in NAMING or set(matcher.values) != {wanted})


def _is_of(value: str, these: tuple[str, ...]) -> bool:
    return any(value.startswith(one) if one.endswith("/") else value == one for one in these)


def _of_pull_requests(matcher: Matcher, value: str, profile: Profile) -> bool:
    named = matcher.claim in profile.trigger and matcher.kind in NAMING
    return bool(PULL_REQUEST.search(value)) or (named and _is_of(value, profile.pull_requests))


def _lets_pull_requests_in(matcher: Matcher, profile: Profile) -> bool:
    pattern = matcher.values[0]
    return not pattern.strip("*/") or any(_reaches(matcher, one) for one in profile.pull_requests)


def _reaches(matcher: Matcher, one: str) -> bool:
    """Whether the pattern fits a pull request; those that begin with ``one`` have their number behind it."""
    if not one.endswith("/"):
        return matching.fits(matcher, one)
    first, pattern = one.rstrip("/").split("/"), matcher.values[0].split("/")
    begins = replace(matcher, values=("/".join(pattern[: len(first)]),))
    number = pattern[len(first)] if len(pattern) > len(first) else "-"
    return matching.fits(begins, "/".join(first)) and not number.strip("0123456789*")


def _hardening(rule: TrustRule, profile: Profile, bound: dict[str, Matcher]) -> Iterator[Weakness]:
    matched = {matcher.claim for matcher in rule.matchers if not _is_no_flag(matcher, profile)}
    for claims, reason in profile.hardening:
        if not matched & set(claims):
            yield "B", f"Could be narrower: {reason}."
    if rule.preset is Preset.GENERIC and bound.keys() <= {"sub"}:
        yield "B", "Nothing but sub is matched; a name in it may be given to somebody else later."
    if not rule.single_use and profile.token_id:
        yield "B", "A token that leaks can be used again until it is over; make tokens single-use."
    if rule.single_use and profile.presented_again:
        reason = f"A job of {rule.preset} has one token until something renews it, so with single use it logs in once"
        yield "B", f"{reason} until then; make tokens reusable, unless one login is all that a job does."
    if rule.single_use and profile.token_id is False:
        yield "D", f"Tokens of {rule.preset} carry no id, so single use refuses them all."
    if rule.max_session_seconds > LONG_SESSION:
        yield "B", "Sessions may last longer than an hour."
