"""Rules of two pipelines that one token could match are found when a rule is saved."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.errors import Exhausted, Unauthenticated, WrongState
from broker.core.kinds import MatcherKind
from broker.core.model import Matcher, TrustRule
from broker.core.trust import matching
from broker.core.trust.overlap import meets, overlaps
from broker.core.trust.rules import MAX_RULES, choose, match
from tests.fakes.trust_house import BOB, House, verified
from tests.servers.rules import contains, exact, glob, one_of, rule

REQUEST = "0b7e8f3e-1f5f-4c7e-9d59-0f6a4b3a2c1d"

MEETING = [
    (exact("c", "a"), exact("c", "a")),
    (exact("c", "a"), one_of("c", "b", "a")),
    (one_of("c", "a", "b"), one_of("c", "b", "d")),
    (exact("c", "refs/heads/main"), glob("c", "refs/heads/*")),
    (one_of("c", "x", "release-1"), glob("c", "release-*")),
    (glob("c", "a*"), glob("c", "*b")),
    (glob("c", "*"), glob("c", "main")),
    (glob("c", "ab*"), glob("c", "a*c")),
    (glob("c", "a*b*c"), glob("c", "ad*ec")),
    (glob("c", "refs/*/main"), glob("c", "refs/heads/*")),
    (glob("c", "a*a"), glob("c", "*")),
]
APART = [
    (exact("c", "a"), exact("c", "A")),
    (exact("c", "a"), one_of("c", "b", "d")),
    (exact("c", "refs/heads/a/b"), glob("c", "refs/heads/*")),
    (exact("c", "a"), glob("c", "a*a")),
    (glob("c", "a*"), glob("c", "b*")),
    (glob("c", "*a"), glob("c", "*b")),
    (glob("c", "refs/heads/*"), glob("c", "refs/tags/*")),
    (glob("c", "refs/heads/*"), glob("c", "refs/heads/*/*")),
    (glob("c", "ab*"), glob("c", "ac*")),
]


@pytest.mark.parametrize(("one", "other"), MEETING)
def test_two_matchers_that_one_value_fits_meet(one: Matcher, other: Matcher) -> None:
    assert meets(one, other)
    assert meets(other, one)


@pytest.mark.parametrize(("one", "other"), APART)
def test_two_matchers_that_no_value_fits_do_not_meet(one: Matcher, other: Matcher) -> None:
    assert not meets(one, other)
    assert not meets(other, one)


# Values and patterns over few characters, so that they meet often and every value can be tried.
LETTERS = "ab/*"
VALUES = ["".join(letters) for size in range(1, 7) for letters in product("ab/", repeat=size)]
patterns = st.text(LETTERS, min_size=1, max_size=4)
values = st.text("ab/", min_size=1, max_size=4)
exacts = st.builds(exact, st.just("c"), values)
choices = st.lists(values, min_size=1, max_size=3).map(lambda found: one_of("c", *found))
globs = st.builds(glob, st.just("c"), patterns)
matchers = st.one_of(exacts, choices, globs)


@given(matchers, matchers)
def test_meeting_is_what_trying_every_value_says(one: Matcher, other: Matcher) -> None:
    assert meets(one, other) == any(matching.fits(one, value) and matching.fits(other, value) for value in VALUES)


@st.composite
def matching_rules(draw: st.DrawFn) -> tuple[dict[str, Any], TrustRule, TrustRule]:
    """The claims of a token, and two rules that it matches."""
    plain = st.one_of(st.text("ab/:*-1", min_size=1, max_size=12), st.booleans(), st.integers(-3, 30))
    plain = st.one_of(plain, st.lists(plain, min_size=1, max_size=3))
    inner = st.dictionaries(st.just("in"), plain, min_size=1)
    claims = draw(st.dictionaries(st.sampled_from("uvwxyz"), st.one_of(plain, inner), min_size=1))
    paths = [f"{name}/in" if isinstance(value, dict) else name for name, value in claims.items()]
    some = st.lists(st.sampled_from(paths), min_size=1, unique=True)
    return claims, *(rule(matchers=tuple(draw(fitting(path, claims)) for path in draw(some))) for _ in range(2))  # type: ignore[return-value]


@st.composite
def fitting(draw: st.DrawFn, path: str, claims: dict[str, Any]) -> Matcher:
    """A matcher of any kind that fits the claim."""
    listed: Any = claims
    for step in matching.steps(path):
        listed = listed[step]
    if isinstance(listed, list):
        held = draw(st.sampled_from(listed))
        return contains(path, str(held).lower() if isinstance(held, bool) else str(held))
    value = matching.find(claims, path)
    assert value is not None
    kind = draw(st.sampled_from(sorted(set(MatcherKind) - {MatcherKind.CONTAINS})))
    if kind is MatcherKind.EXACT:
        return exact(path, value)
    if kind is MatcherKind.ONE_OF:
        return one_of(path, *draw(st.permutations([value, *draw(st.lists(st.text("ab", min_size=1), max_size=2))])))
    return glob(path, "/".join(draw(starred(segment)) for segment in value.split("/")))


@st.composite
def starred(draw: st.DrawFn, segment: str) -> str:
    """The segment with stars for some of its parts, or for nothing."""
    pattern = segment
    for _ in range(draw(st.integers(0, 3))):
        begin = draw(st.integers(0, len(pattern)))
        pattern = pattern[:begin] + "*" + pattern[draw(st.integers(begin, len(pattern))) :]
    return pattern


@given(matching_rules())
def test_no_token_that_matches_two_rules_is_ever_missed(found: tuple[dict[str, Any], TrustRule, TrustRule]) -> None:
    claims, one, other = found
    assert all(finding.passed for each in (one, other) for finding in match(each, claims))
    assert overlaps(one, other)
    assert overlaps(other, one)


@given(matching_rules(), st.data())
def test_rules_that_are_told_apart_share_no_token(
    found: tuple[dict[str, Any], TrustRule, TrustRule], data: st.DataObject
) -> None:
    claims, one, other = found
    first, *rest = other.matchers
    far = replace(other, matchers=(replace(first, kind=MatcherKind.EXACT, values=(data.draw(values),)), *rest))
    if not overlaps(one, far):
        assert not all(finding.passed for each in (one, far) for finding in match(each, claims))


@pytest.mark.parametrize(
    "changes",
    [
        {"issuer": "https://other.example"},
        {"audience": "other"},
        {"matchers": (exact("project_id", "43"),)},
        {"matchers": (exact("project_id", "43"), exact("ref", "main"))},
        {"pipeline": "deploy"},
    ],
)
def test_a_rule_that_is_apart_or_of_the_same_pipeline_is_saved(changes: dict[str, Any]) -> None:
    house = House()
    house.rules.create(house.call("CreateTrustRule"), rule())
    house.rules.create(house.call("CreateTrustRule"), rule("second", **{"pipeline": "payments", **changes}))
    assert house.store.get(TrustRule, "second") is not None


OVERLAPPING: dict[str, tuple[Matcher, ...]] = {
    "the same": (exact("project_id", "42"),),
    "narrower": (exact("project_id", "42"), exact("ref", "main")),
    "one of several": (one_of("project_id", "41", "42"),),
    "another claim": (exact("sub", "job"),),
    "a pattern beside it": (exact("project_id", "42"), glob("ref", "refs/heads/*")),
}


@pytest.mark.parametrize("matchers", OVERLAPPING.values(), ids=OVERLAPPING.keys())
@pytest.mark.parametrize("dry", [True, False])
def test_AZ_05_a_delegated_author_cannot_make_another_teams_logins_ambiguous(
    matchers: tuple[Matcher, ...], *, dry: bool
) -> None:
    house = House()
    theirs = house.rules.create(house.call("CreateTrustRule"), rule("pay", pipeline="payments"))
    before = len(house.store.entries)
    with pytest.raises(WrongState) as refused:
        house.rules.create(house.call("CreateTrustRule", BOB, validate_only=dry), rule(matchers=matchers))
    assert refused.value.reason == "TRUST_RULES_OVERLAP"
    assert "pay" not in refused.value.message  # he may not see it, nor learn of its pipeline
    assert "a trust rule that you may not see" in refused.value.message.lower()
    assert (house.store.get(TrustRule, "deploy"), len(house.store.entries)) == (None, before)
    assert choose([theirs], "", verified()).rule == "pay"


def test_who_may_see_the_other_rule_is_told_its_name() -> None:
    house = House()
    house.rules.create(house.call("CreateTrustRule"), rule("pay", pipeline="payments"))
    with pytest.raises(WrongState, match=r"The trust rule pay \(pipeline/payments\) takes tokens"):
        house.rules.create(house.call("CreateTrustRule"), rule())


@pytest.mark.parametrize("dry", [True, False])
def test_a_rule_is_not_widened_into_another_pipelines(*, dry: bool) -> None:
    house = House()
    house.rules.create(house.call("CreateTrustRule"), rule("pay", pipeline="payments"))
    mine = house.rules.create(house.call("CreateTrustRule", BOB), rule(matchers=(exact("project_id", "7"),)))
    wider = replace(mine, matchers=(one_of("project_id", "7", "42"),))
    with pytest.raises(WrongState) as refused:
        house.rules.update(house.call("UpdateTrustRule", BOB, validate_only=dry), wider)
    assert refused.value.reason == "TRUST_RULES_OVERLAP"
    assert house.store.get(TrustRule, "deploy") == mine


def test_a_repetition_is_answered_as_the_first_was_though_a_neighbour_has_come() -> None:
    house = House()
    made = house.rules.create(house.call("CreateTrustRule", request_id=REQUEST), rule())
    with house.store.write(house.call("-").outcome()) as write:
        write.add(rule("pay", pipeline="payments"))
    assert house.rules.create(house.call("CreateTrustRule", request_id=REQUEST), rule()) == made


def test_rules_that_overlap_from_before_stay_ambiguous_until_one_is_deleted() -> None:
    house = House()
    both = [rule(), rule("pay", pipeline="payments")]
    with house.store.write(house.call("-").outcome()) as write:
        write.add(*both)
    with pytest.raises(Unauthenticated):
        choose(both, "", verified())
    house.rules.delete(house.call("DeleteTrustRule"), "pay")
    narrower = replace(rule(), matchers=(exact("project_id", "42"), exact("ref", "main")))
    assert house.rules.update(house.call("UpdateTrustRule"), narrower).revision == 2


def crowd(house: House, count: int) -> None:
    with house.store.write(house.call("-").outcome()) as write:
        write.add(*(rule(f"r{number}", matchers=(exact("project_id", f"p{number}"),)) for number in range(count)))


@pytest.mark.parametrize("dry", [True, False])
def test_rules_beyond_a_thousand_of_an_issuer_are_refused_and_not_ignored(*, dry: bool) -> None:
    house = House()
    crowd(house, MAX_RULES - 1)
    house.rules.create(house.call("CreateTrustRule", validate_only=dry), rule())
    crowd_again = rule("last", matchers=(exact("project_id", "last"),))
    if dry:
        with house.store.write(house.call("-").outcome()) as write:
            write.add(rule())
    with pytest.raises(Exhausted) as refused:
        house.rules.create(house.call("CreateTrustRule", validate_only=dry), crowd_again)
    assert (refused.value.reason, str(MAX_RULES) in refused.value.message) == ("TRUST_RULES_TOO_MANY", True)
    kept = house.rules.get(house.call("GetTrustRule"), "deploy")
    house.rules.update(house.call("UpdateTrustRule"), replace(kept, max_session_seconds=600))
    other = replace(crowd_again, issuer="https://other.example")
    elsewhere = house.rules.create(house.call("CreateTrustRule"), other)
    with pytest.raises(Exhausted):
        house.rules.update(house.call("UpdateTrustRule"), replace(elsewhere, issuer="https://ci.example"))
