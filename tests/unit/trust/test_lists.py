"""What kinds of claims compare as (P27): lists, numbers, truth values; and what a rule says of tokens shown again."""

from __future__ import annotations

from typing import Any

import pytest

from broker.core.kinds import Preset
from broker.core.trust import matching
from broker.core.trust.linting import grade
from broker.core.trust.rules import match
from tests.servers.rules import EXAMPLES, contains, exact, glob, one_of, rule

FITTING: list[tuple[Any, Any, bool]] = [
    (contains("c", "b"), ["a", "b"], True), (contains("c", "b"), ["ab", "B", "b "], False),
    (contains("c", "b"), "b", False), (contains("c", "b"), {"b": 1}, False), (contains("c", "b"), [], False),
    (contains("c", "1"), [1], True), (contains("c", "true"), [True], True), (contains("c", "1"), [1.0], False),
    (contains("c", "b"), [["b"]], False), (contains("c", "b"), None, False), (contains("c", "a, b"), ["a", "b"], False),
    (exact("c", "b"), ["b"], False), (one_of("c", "a", "b"), ["b"], False), (glob("c", "*"), ["b"], False),
    (exact("c", "['b']"), ["b"], False),
    (exact("c", "123"), 123, True), (exact("c", "123"), "123", True), (exact("c", "0123"), 123, False),
    (exact("c", "0123"), "0123", True), (exact("c", "true"), True, True), (exact("c", "True"), True, False),
    (exact("c", "1"), True, False), (exact("c", "123"), 123.0, False), (exact("c", "-1"), -1, True),
    (exact("c", "on"), "on", True), (exact("c", "null"), None, False),
]  # fmt: skip


@pytest.mark.parametrize(("matcher", "value", "fits"), FITTING, ids=str)
def test_P27_a_claim_fits_by_what_it_is(matcher: Any, value: Any, fits: bool) -> None:  # noqa: FBT001 (of pytest)
    found = match(rule(matchers=(matcher,)), {"c": value})
    assert [one.passed for one in found] == [fits]
    assert (matching.proven(matcher, {"c": value}) == matcher.values[-1]) == fits


def test_P27_an_operator_who_tests_a_rule_is_told_that_a_claim_is_a_list() -> None:
    (found,) = match(rule(matchers=(exact("groups_direct", "b"),)), {"groups_direct": ["a", "b"]})
    assert (found.passed, found.found) == (False, "a list: a, b")
    assert "contains" in found.expected


@pytest.mark.parametrize("preset", Preset)
def test_P27_no_matcher_of_the_audience_beside_the_rules_own(preset: Preset) -> None:
    good = EXAMPLES[preset][0]
    assert grade(rule(preset=preset, issuer=good.issuer, matchers=(*good.matchers, exact("aud", "x"))))[0] == "F"


def test_P27_a_list_makes_no_identity() -> None:
    letter, reasons = grade(rule(matchers=(contains("group_id", "42"),)))
    assert letter == "F"
    assert "no immutable id" in " ".join(reasons)


@pytest.mark.parametrize(("matcher", "told"), [
    (exact("ref", "refs/heads/release-*"), "ref is matched by a text, where * stands for itself; write {glob"),
    (one_of("event_name", "push", "sched*"), "event_name is matched by a text, where * stands for itself"),
    (exact("repository_id", "4*"), "where * stands for itself; give it whole"),
    (exact("repository_id", "42 "), "A value for repository_id begins or ends with a blank"),
    (exact("Environment", "production"), "There is no claim Environment; it is called environment"),
])  # fmt: skip
def test_P27_what_is_written_nearly_right_lets_nobody_in_and_is_refused(matcher: Any, told: str) -> None:
    good = EXAMPLES[Preset.GITHUB][0]
    others = [one for one in good.matchers if one.claim != matcher.claim]
    letter, reasons = grade(rule(preset=Preset.GITHUB, issuer=good.issuer, matchers=(*others, matcher)))
    assert letter == "F"
    assert told in " ".join(reasons)
