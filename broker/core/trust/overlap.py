"""Whether one identity token could match two trust rules: decided from the matchers alone, and never "no" wrongly.

Two rules are apart when some claim cannot have a value that both take. What cannot be told apart here counts as
overlapping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from broker.core.errors import WrongState
from broker.core.kinds import MatcherKind
from broker.core.model import Matcher, TrustRule
from broker.core.reasons import Reason
from broker.core.trust import matching


def overlaps(one: TrustRule, other: TrustRule) -> bool:
    """Whether a token that matches both is possible."""
    if (one.issuer, one.audience) != (other.issuer, other.audience):
        return False
    asked = {tuple(matching.steps(matcher.claim)): matcher for matcher in one.matchers}
    both = [(asked.get(tuple(matching.steps(matcher.claim))), matcher) for matcher in other.matchers]
    return all(mine is None or meets(mine, theirs) for mine, theirs in both)


def meets(one: Matcher, other: Matcher) -> bool:
    """Whether there is a value that fits both."""
    if MatcherKind.CONTAINS in {one.kind, other.kind}:
        return one.kind is other.kind  # a list may hold both values, and fits no other kind
    if one.kind is not MatcherKind.GLOB:
        return any(matching.fits(other, value) for value in one.values)
    if other.kind is not MatcherKind.GLOB:
        return meets(other, one)
    mine, theirs = one.values[0].split("/"), other.values[0].split("/")
    return len(mine) == len(theirs) and all(map(_segments_meet, mine, theirs))


def _segments_meet(one: str, other: str) -> bool:
    """Whether some text fits both patterns of one segment.

    Between its first and its last star a pattern fits whatever has its pieces somewhere, so that two patterns with
    stars are kept apart by their beginnings and ends alone.
    """
    if "*" not in one:
        return matching.fits_segment(other, one)
    if "*" not in other:
        return matching.fits_segment(one, other)
    begins = one.partition("*")[0], other.partition("*")[0]
    ends = one.rpartition("*")[2], other.rpartition("*")[2]
    return (begins[0].startswith(begins[1]) or begins[1].startswith(begins[0])) and (
        ends[0].endswith(ends[1]) or ends[1].endswith(ends[0])
    )


def check_apart(rule: TrustRule, others: Iterable[TrustRule], may_see: Callable[[TrustRule], bool]) -> None:
    """Return if no rule of another pipeline takes a token that ``rule`` takes; else WrongState ``TRUST_RULES_OVERLAP``.

    Else an operator who may write one pipeline's rules could make another's logins ambiguous. ``may_see``: a rule that
    the caller may not see is not named.
    """
    clashing = [other for other in others if other.pipeline != rule.pipeline and overlaps(rule, other)]
    if not clashing:
        return
    seen = next(filter(may_see, clashing), None)
    which = f"The trust rule {seen.name} (pipeline/{seen.pipeline})" if seen else "A trust rule that you may not see"
    raise WrongState(
        Reason.TRUST_RULES_OVERLAP,
        f"{which} takes tokens that this one takes too, and gives another pipeline: match a claim to values that the "
        f"other does not take{', or give both the same pipeline' if seen else ', or ask who keeps the rules'}.",
    )
