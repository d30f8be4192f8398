"""Trust rules: matchers, grades and the choice of one rule (AN-11 to AN-13, AN-22 to AN-24)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.errors import BrokerError, Unauthenticated
from broker.core.identity import Verified
from broker.core.kinds import Preset
from broker.core.model import TrustRule
from broker.core.trust import matching
from broker.core.trust.rules import choose, match
from tests.fakes.cost import cost
from tests.fakes.refusals import refused
from tests.fakes.trust_house import verified
from tests.servers.rules import EXAMPLES, exact, glob, one_of, rule


def denied(rules: list[TrustRule], said: Verified, named: str = "") -> BrokerError:
    return refused(lambda: choose(rules, named, said), Unauthenticated)


# Matchers


@pytest.mark.parametrize(
    ("pattern", "value", "fits"),
    [
        ("refs/heads/*", "refs/heads/main", True),
        ("refs/heads/*", "refs/heads/a/b", False),
        ("refs/heads/*", "refs/tags/main", False),
        ("refs/heads/*", "xrefs/heads/main", False),
        ("refs/heads/*", "refs/heads/main/", False),
        ("*/heads/main", "refs/heads/main", True),
        ("v*.*", "v1.2", True),
        ("v*.*", "v12", False),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("a*b*c", "axbxc", True),
        ("a*b*c", "acb", False),
        ("main", "main", True),
        ("main", "Main", False),
        ("m?in", "main", False),
        ("m[a]in", "main", False),
        ("*", "a\nb", True),
        ("a.c", "abc", False),
    ],
)
def test_a_glob_is_anchored_and_its_star_stays_between_slashes(pattern: str, value: str, *, fits: bool) -> None:
    assert matching.fits(glob("ref", pattern), value) is fits


@given(st.text("ab/*", max_size=12), st.text("ab/", max_size=12))
def test_a_glob_never_crosses_a_slash(pattern: str, value: str) -> None:
    if matching.fits(glob("x", pattern), value):
        assert pattern.count("/") == value.count("/")


def test_NT_16_no_pattern_takes_long() -> None:
    pattern = glob("x", "a*" * 250 + "b")
    assert not matching.fits(pattern, "a" * 1024)
    assert cost(lambda: matching.fits(pattern, "a" * 1024)) < 0.5


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a", "1"),
        ("n/deep/uid", "u"),
        ("with//slash", "s"),
        ("kubernetes.io/pod/name", "p"),
        ("yes", "true"),
        ("whole", "42"),
        ("list", None),
        ("part", None),
        ("none", None),
        ("n", None),
        ("a/b", None),
        ("absent", None),
        ("n/absent/uid", None),
        ("list/0", None),
    ],
)
def test_a_path_steps_into_objects_and_gives_plain_values_only(path: str, found: str | None) -> None:
    claims = {
        "a": "1", "n": {"deep": {"uid": "u"}}, "with/slash": "s", "kubernetes.io": {"pod": {"name": "p"}},
        "yes": True, "whole": 42, "list": ["1"], "part": 1.5, "none": None,
    }  # fmt: skip
    assert matching.find(claims, path) == found


def test_an_absent_claim_matches_nothing() -> None:
    asked = rule(matchers=(exact("a", "(absent)"), glob("b", "*"), one_of("c", "None", "")))
    assert [finding.passed for finding in match(asked, {})] == [False, False, False]


@pytest.mark.parametrize("value", ["Main", "main ", " main", "main\n", "m\u0430in", "ma\u0131n", "main\u200b", "mai"])
def test_values_are_compared_as_the_bytes_they_are(value: str) -> None:
    (finding,) = match(rule(matchers=(exact("ref", "main"),)), {"ref": value})
    assert not finding.passed


def test_what_is_shown_of_a_claim_is_short_and_plain() -> None:
    shown = matching.shown("\x1b[31m" + "a" * 5000)
    assert len(shown) <= 128
    assert "\x1b" not in shown


# The choice of a rule


def test_the_rule_that_matches_gives_the_proof() -> None:
    rules = [rule("one"), rule("two", matchers=(exact("project_id", "43"),))]
    proof = choose(rules, "", verified())
    assert (proof.rule, proof.subject, proof.token_id, dict(proof.claims)) == ("one", "job", "t1", {"project_id": "42"})


def test_AN_13_a_token_of_another_issuer_never_fits() -> None:
    error = denied([rule()], verified(issuer="https://other.example"))
    assert error.reason == "TRUST_NO_RULE"


@pytest.mark.parametrize(
    "issuer", ["https://ci.example/", "https://CI.example", "https://ci.example.evil", "https://c"]
)
def test_AN_11_an_issuer_is_its_very_bytes(issuer: str) -> None:
    assert denied([rule()], verified(issuer=issuer)).reason == "TRUST_NO_RULE"


@pytest.mark.parametrize("audience", ["", "broker2", "broke", "Broker", "broker "])
def test_AN_12_each_rule_has_its_own_audience(audience: str) -> None:
    error = denied([rule()], verified(audience=audience))
    assert (error.reason, error.facts["claim"]) == ("TRUST_CLAIM_MISMATCH", "aud")


def test_the_audit_learns_which_claim_failed_and_the_caller_does_not() -> None:
    asked = rule(matchers=(exact("project_id", "42"), exact("ref", "expected-ref")))
    error = denied([asked], verified({"project_id": "42", "ref": "found-ref"}))
    assert error.reason == "TRUST_CLAIM_MISMATCH"
    assert {name: error.facts[name] for name in ("claim", "claim_expected", "claim_found", "trust_rule")} == {
        "claim": "ref", "claim_expected": "expected-ref", "claim_found": "found-ref", "trust_rule": "deploy",
    }  # fmt: skip
    assert not error.metadata
    assert "ref" not in error.message


def test_of_several_rules_the_audit_is_told_of_the_nearest() -> None:
    far = rule("far", matchers=(exact("project_id", "1"), exact("ref", "x")))
    near = rule("near", matchers=(exact("project_id", "42"), exact("ref", "x")))
    error = denied([far, near], verified({"project_id": "42", "ref": "y"}))
    assert (error.facts["trust_rule"], error.facts["claim"]) == ("near", "ref")


def test_two_rules_that_fit_need_a_name() -> None:
    rules = [rule("one"), rule("two")]
    error = denied(rules, verified())
    assert (error.reason, error.facts["trust_rule"]) == ("TRUST_AMBIGUOUS", "one,two")
    assert choose(rules, "two", verified()).rule == "two"


def test_AN_32_a_name_that_no_rule_has_is_refused_like_one_of_another_issuer() -> None:
    other = rule("other", issuer="https://other.example")
    missing, foreign = denied([rule(), other], verified(), "missing"), denied([rule(), other], verified(), "other")
    unfit = denied([rule(matchers=(exact("project_id", "43"),)), other], verified(), "deploy")
    assert {(each.reason, each.message, str(each.metadata)) for each in (missing, foreign, unfit)} == {
        ("TRUST_CLAIM_MISMATCH", unfit.message, "{}")
    }
    assert missing.facts["claim_found"] == "missing"


def test_single_use_needs_an_id() -> None:
    error = denied([rule()], verified(token_id=""))
    assert (error.reason, error.facts["claim"]) == ("TRUST_CLAIM_MISMATCH", "jti")
    assert choose([rule(single_use=False)], "", verified(token_id="")).token_id == ""


def test_AN_23_a_name_that_was_taken_over_has_another_id() -> None:
    asked, claims = EXAMPLES[Preset.GITHUB]
    said = verified(claims, issuer=asked.issuer, audience=asked.audience)
    assert choose([asked], "", said).rule == asked.name
    again = {**claims, "repository_id": "99", "repository_owner_id": "98"}
    error = denied([asked], verified(again, issuer=asked.issuer, audience=asked.audience))
    assert error.reason == "TRUST_CLAIM_MISMATCH"


def test_AN_24_the_subject_is_never_taken_apart() -> None:
    asked, claims = EXAMPLES[Preset.GITHUB]
    squat = {**claims, "sub": "repo:octo-org@65/octo-repo@74:environment:prod",
             "repository_id": "1", "repository": f"org-{claims['repository_id']}/app"}  # fmt: skip
    error = denied([asked], verified(squat, issuer=asked.issuer, audience=asked.audience))
    assert error.facts["claim"] == "repository_id"
