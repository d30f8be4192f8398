"""Trust rules: matchers, grades and the choice of one rule (AN-11 to AN-13, AN-22 to AN-24)."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core import matching
from broker.core.errors import AlreadyExists, InvalidRequest, NotFound, PermissionDenied, Unauthenticated, WrongState
from broker.core.guard import Guard
from broker.core.model import Matcher, MatcherKind, Preset, TrustRule
from broker.core.policy import FIRST_POLICY
from broker.core.ports import ClaimFinding, Verified
from broker.core.presets import PROFILES
from broker.core.trust import TrustRules, choose, grade, match
from tests.fakes.calls import Clock, call, document, operator
from tests.fakes.memory_store import MemoryStore
from tests.servers.rules import CIRCLE, EXAMPLES, exact, glob, one_of, rule

ADMIN = operator("alice", "admins")
REQUEST = "0b7e8f3e-1f5f-4c7e-9d59-0f6a4b3a2c1d"


def verified(claims: dict[str, Any] | None = None, **changes: Any) -> Verified:
    parts: dict[str, Any] = {
        "issuer": "https://ci.example", "subject": "job", "audience": "broker", "token_id": "t1",
        "expires_at": datetime(2026, 5, 4, tzinfo=UTC), "claims": claims or {"project_id": "42"},
    }  # fmt: skip
    return Verified(**{**parts, **changes})


def refusal(rules: list[TrustRule], said: Verified, named: str = "") -> Unauthenticated:
    with pytest.raises(Unauthenticated) as refused:
        choose(rules, named, said)
    return refused.value


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
    begun = time.process_time()
    assert not matching.fits(glob("x", "a*" * 250 + "b"), "a" * 1024)
    assert time.process_time() - begun < 0.01


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
    error = refusal([rule()], verified(issuer="https://other.example"))
    assert error.reason == "TRUST_NO_RULE"


@pytest.mark.parametrize(
    "issuer", ["https://ci.example/", "https://CI.example", "https://ci.example.evil", "https://c"]
)
def test_AN_11_an_issuer_is_its_very_bytes(issuer: str) -> None:
    assert refusal([rule()], verified(issuer=issuer)).reason == "TRUST_NO_RULE"


@pytest.mark.parametrize("audience", ["", "broker2", "broke", "Broker", "broker "])
def test_AN_12_each_rule_has_its_own_audience(audience: str) -> None:
    error = refusal([rule()], verified(audience=audience))
    assert (error.reason, error.facts["claim"]) == ("TRUST_CLAIM_MISMATCH", "aud")


def test_the_audit_learns_which_claim_failed_and_the_caller_does_not() -> None:
    asked = rule(matchers=(exact("project_id", "42"), exact("ref", "expected-ref")))
    error = refusal([asked], verified({"project_id": "42", "ref": "found-ref"}))
    assert error.reason == "TRUST_CLAIM_MISMATCH"
    assert {name: error.facts[name] for name in ("claim", "claim_expected", "claim_found", "trust_rule")} == {
        "claim": "ref", "claim_expected": "expected-ref", "claim_found": "found-ref", "trust_rule": "deploy",
    }  # fmt: skip
    assert not error.metadata
    assert "ref" not in error.message


def test_of_several_rules_the_audit_is_told_of_the_nearest() -> None:
    far = rule("far", matchers=(exact("project_id", "1"), exact("ref", "x")))
    near = rule("near", matchers=(exact("project_id", "42"), exact("ref", "x")))
    error = refusal([far, near], verified({"project_id": "42", "ref": "y"}))
    assert (error.facts["trust_rule"], error.facts["claim"]) == ("near", "ref")


def test_two_rules_that_fit_need_a_name() -> None:
    rules = [rule("one"), rule("two")]
    error = refusal(rules, verified())
    assert (error.reason, error.facts["trust_rule"]) == ("TRUST_AMBIGUOUS", "one,two")
    assert choose(rules, "two", verified()).rule == "two"


def test_AN_32_a_name_that_no_rule_has_is_refused_like_one_of_another_issuer() -> None:
    other = rule("other", issuer="https://other.example")
    missing, foreign = refusal([rule(), other], verified(), "missing"), refusal([rule(), other], verified(), "other")
    assert (missing.reason, missing.message) == (foreign.reason, foreign.message) == (
        "TRUST_NO_RULE", missing.message,
    )  # fmt: skip


def test_single_use_needs_an_id() -> None:
    error = refusal([rule()], verified(token_id=""))
    assert (error.reason, error.facts["claim"]) == ("TRUST_CLAIM_MISMATCH", "jti")
    assert choose([rule(single_use=False)], "", verified(token_id="")).token_id == ""


def test_AN_23_a_name_that_was_taken_over_has_another_id() -> None:
    asked, claims = EXAMPLES[Preset.GITHUB]
    said = verified(claims, issuer=asked.issuer, audience=asked.audience)
    assert choose([asked], "", said).rule == asked.name
    again = {**claims, "repository_id": "99", "repository_owner_id": "98"}
    error = refusal([asked], verified(again, issuer=asked.issuer, audience=asked.audience))
    assert error.reason == "TRUST_CLAIM_MISMATCH"


def test_AN_24_the_subject_is_never_taken_apart() -> None:
    asked, claims = EXAMPLES[Preset.GITHUB]
    squat = {**claims, "sub": "repo:octo-org@65/octo-repo@74:environment:prod",
             "repository_id": "1", "repository": f"org-{claims['repository_id']}/app"}  # fmt: skip
    error = refusal([asked], verified(squat, issuer=asked.issuer, audience=asked.audience))
    assert error.facts["claim"] == "repository_id"


# Grades


@pytest.mark.parametrize("preset", EXAMPLES)
def test_every_preset_has_a_rule_that_is_saved(preset: Preset) -> None:
    asked, claims = EXAMPLES[preset]
    letter, reasons = grade(asked)
    assert letter in {"A", "B"}, reasons
    assert all(finding.passed for finding in match(asked, claims))


def test_every_preset_is_described() -> None:
    assert set(PROFILES) == set(Preset)


def without(preset: Preset, *claims: str, **changes: Any) -> TrustRule:
    asked, _ = EXAMPLES[preset]
    return replace(asked, matchers=tuple(one for one in asked.matchers if one.claim not in claims), **changes)


def with_(preset: Preset, *matchers: Matcher) -> TrustRule:
    asked = without(preset, *(one.claim for one in matchers))
    return replace(asked, matchers=(*asked.matchers, *matchers))


WEAK: dict[str, tuple[TrustRule, str]] = {
    "only an audience": (rule(matchers=(exact("ref", "main"),)), "immutable id"),
    "no audience": (rule(audience=""), "audience"),
    "a pattern as audience": (rule(audience="https://*"), "audience"),
    "github: any repository of an owner": (without(Preset.GITHUB, "repository_id"), "repository_id"),
    "github: no owner": (without(Preset.GITHUB, "repository_owner_id"), "all organisations"),
    "github: a subject pattern": (with_(Preset.GITHUB, glob("sub", "repo:org/*")), "sub is an identity"),
    "github: only a subject": (
        replace(EXAMPLES[Preset.GITHUB][0], matchers=(exact("sub", "repo:o/r:ref:refs/heads/main"),)), "repository_id",
    ),
    "github: a repository pattern": (with_(Preset.GITHUB, glob("repository", "org/*")), "repository is an identity"),
    "github: an id pattern": (with_(Preset.GITHUB, glob("repository_id", "4*")), "repository_id is an identity"),
    "github: pull requests not named": (without(Preset.GITHUB, "event_name"), "pull requests"),
    "github: any event": (with_(Preset.GITHUB, glob("event_name", "*")), "pull requests"),
    "github: an event pattern": (with_(Preset.GITHUB, glob("event_name", "pull*")), "pull requests"),
    "github: the owner's URL": (without(Preset.GITHUB, audience="https://github.com/org"), "default"),
    "github: another issuer": (without(Preset.GITHUB, issuer="https://token.actions.example"), "issuer"),
    "gitlab: no project": (without(Preset.GITLAB, "project_id"), "project_id"),
    "gitlab.com: no namespace": (without(Preset.GITLAB, "namespace_id"), "all organisations"),
    "gitlab: merge requests not named": (without(Preset.GITLAB, "pipeline_source"), "pull requests"),
    "azure: no organisation": (without(Preset.AZURE_DEVOPS, "org_id"), "org_id"),
    "azure: no definition": (without(Preset.AZURE_DEVOPS, "def_id"), "def_id"),
    "azure: another audience": (without(Preset.AZURE_DEVOPS, audience="broker"), "one audience only"),
    "azure: any ref": (without(Preset.AZURE_DEVOPS, "rpo_ref"), "pull requests"),
    "azure: a pattern with pull requests": (with_(Preset.AZURE_DEVOPS, glob("rpo_ref", "refs/*/*/*")), "pull requests"),
    "bitbucket: no repository": (without(Preset.BITBUCKET, "repositoryUuid"), "repositoryUuid"),
    "bitbucket: no workspace": (without(Preset.BITBUCKET, "workspaceUuid"), "workspaceUuid"),
    "bitbucket: no deployment": (without(Preset.BITBUCKET, "deploymentEnvironmentUuid"), "pull requests"),
    "circleci: root issuer, no organisation": (
        without(Preset.CIRCLECI, f"{CIRCLE}org-id", issuer="https://oidc.circleci.com"), "all organisations",
    ),
    "circleci: no project": (without(Preset.CIRCLECI, f"{CIRCLE}project-id"), "project-id"),
    "circleci: forks": (without(Preset.CIRCLECI, f"{CIRCLE}vcs-origin"), "vcs-origin"),
    "buildkite: no organisation": (without(Preset.BUILDKITE, "organization_id"), "all organisations"),
    "buildkite: no pipeline": (without(Preset.BUILDKITE, "pipeline_id"), "pipeline_id"),
    "buildkite: any branch": (without(Preset.BUILDKITE, "build_branch"), "pull requests"),
    "kubernetes: no uid": (without(Preset.KUBERNETES, "kubernetes.io/serviceaccount/uid"), "serviceaccount/uid"),
}  # fmt: skip


@pytest.mark.parametrize(("asked", "reason"), WEAK.values(), ids=WEAK.keys())
def test_AN_22_a_rule_that_lets_strangers_in_is_not_saved(asked: TrustRule, reason: str) -> None:
    letter, reasons = grade(asked)
    assert letter == "F"
    assert any(one.startswith("F") and reason in one for one in reasons), reasons
    house = House()
    with pytest.raises(InvalidRequest) as refused:
        house.rules.create(house.call("CreateTrustRule"), asked)
    assert refused.value.reason == "TRUST_RULE_WEAK"
    assert reason in refused.value.message


@pytest.mark.parametrize(
    ("asked", "letter"),
    [
        (with_(Preset.GITHUB, one_of("event_name", "push", "pull_request_target")), "D"),
        (without(Preset.GITHUB, single_use=False), "B"),
        (without(Preset.GITHUB, max_session_seconds=7200), "B"),
        (without(Preset.AZURE_DEVOPS, single_use=False), "D"),
        (with_(Preset.GITHUB, glob("ref", "refs/heads/release-*")), "B"),
        (with_(Preset.GITHUB, glob("workflow", "*")), "D"),
        (without(Preset.CIRCLECI, single_use=True), "D"),
        (without(Preset.BITBUCKET, audience="ari:cloud:bitbucket::workspace/1"), "C"),
    ],
)
def test_a_rule_that_could_be_better_is_told_so(asked: TrustRule, letter: str) -> None:
    assert grade(asked)[0] == letter


INVALID: dict[str, dict[str, Any]] = {
    "no matcher": {"matchers": ()},
    "too many matchers": {"matchers": tuple(exact(f"c{n}", "x") for n in range(33))},
    "a claim twice": {"matchers": (exact("project_id", "1"), exact("project_id", "2"))},
    "no value": {"matchers": (Matcher(claim="project_id", kind=MatcherKind.ONE_OF, values=()),)},
    "two values for exact": {"matchers": (Matcher(claim="project_id", kind=MatcherKind.EXACT, values=("1", "2")),)},
    "an empty value": {"matchers": (exact("project_id", ""),)},
    "an escape": {"matchers": (exact("project_id", "\x1b[1m"),)},
    "an empty path": {"matchers": (exact("", "1"),)},
    "a path that ends in a slash": {"matchers": (exact("a/", "1"),)},
    "a path that begins with a slash": {"matchers": (exact("/a", "1"),)},
    "a deep path": {"matchers": (exact("/".join("a" * 9), "1"),)},
    "plain http": {"issuer": "http://ci.example"},
    "a user": {"issuer": "https://me@ci.example"},
    "a query": {"issuer": "https://ci.example/?a=b"},
    "a fragment": {"issuer": "https://ci.example/#a"},
    "capitals": {"issuer": "https://CI.example"},
    "a file": {"issuer": "file:///etc/passwd"},
    "no issuer": {"issuer": ""},
    "a newline": {"issuer": "https://ci.example\n"},
    "an audience with an escape": {"audience": "a\x1b"},
    "a short session": {"max_session_seconds": 59},
    "a long session": {"max_session_seconds": 86401},
    "a pipeline's name": {"pipeline": "Deploy"},
    "a name": {"name": "a/b"},
    "a CA that is none": {"ca_pem": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
    "a private key": {"ca_pem": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"},
}


@pytest.mark.parametrize("changes", INVALID.values(), ids=INVALID.keys())
def test_a_rule_that_is_none_is_refused(changes: dict[str, Any]) -> None:
    house = House()
    with pytest.raises(InvalidRequest) as refused:
        house.rules.create(house.call("CreateTrustRule"), rule(**changes))
    assert refused.value.reason in {"TRUST_RULE_INVALID", "NAME_INVALID"}
    assert house.store.get(TrustRule, "deploy") is None


# The noun


class House:
    """A store, the first policy, and the noun on it."""

    def __init__(self) -> None:
        self.clock, self.store = Clock(), MemoryStore()
        self.said: Verified | Unauthenticated = verified()
        self.rules = TrustRules(self.store, Guard(document(FIRST_POLICY + OWN)), self.verify, self.clock)

    def verify(self, _rule: TrustRule, _token: str) -> Verified:
        if isinstance(self.said, Unauthenticated):
            raise self.said
        return self.said

    def call(self, action: str, who: Any = ADMIN, **options: Any) -> Any:
        return call(f"TrustService/{action}", who, self.clock, **options)


OWN = """
@id("bob") permit (principal == Operator::"bob", action in [Action::"CreateTrustRule", Action::"UpdateTrustRule"],
resource) when { resource.pipeline == "deploy" };
"""
BOB = operator("bob")


def test_a_rule_is_kept_with_its_grade() -> None:
    house = House()
    made = house.rules.create(house.call("CreateTrustRule"), rule(grade="A", findings=("made up",), revision=7))
    assert (made.grade, made.created_at, made.revision) == ("A", house.clock.time, 1)
    assert made.findings == ()
    assert house.rules.get(house.call("GetTrustRule"), "deploy") == made
    assert house.rules.page(house.call("ListTrustRules"), (), 10).items == [made]
    assert house.store.entries[0].resource == "trustrule/deploy"
    assert house.store.entries[0].facts["issuer"] == "https://ci.example"


def test_a_name_is_taken_once() -> None:
    house = House()
    house.rules.create(house.call("CreateTrustRule"), rule())
    for dry in (False, True):
        with pytest.raises(AlreadyExists):
            house.rules.create(house.call("CreateTrustRule", validate_only=dry), rule())


def test_a_request_that_is_repeated_does_nothing_again() -> None:
    house = House()
    made = house.rules.create(house.call("CreateTrustRule", request_id=REQUEST), rule())
    assert house.rules.create(house.call("CreateTrustRule", request_id=REQUEST), rule()) == made
    with house.store.write(house.call("-").outcome()) as write:
        assert len(write.page(TrustRule, limit=9)) == 1


def test_a_dry_run_grades_and_keeps_nothing() -> None:
    house = House()
    assert house.rules.create(house.call("CreateTrustRule", validate_only=True), rule()).grade == "A"
    assert house.store.get(TrustRule, "deploy") is None


def test_an_update_needs_the_newest_revision() -> None:
    house = House()
    made = house.rules.create(house.call("CreateTrustRule"), rule())
    changed = house.rules.update(house.call("UpdateTrustRule"), replace(made, audience="other"))
    assert (changed.audience, changed.revision, changed.created_at) == ("other", 2, made.created_at)
    for dry in (False, True):
        with pytest.raises(WrongState) as refused:
            house.rules.update(house.call("UpdateTrustRule", validate_only=dry), replace(made, audience="third"))
        assert refused.value.reason == "CHANGED_MEANWHILE"


def test_an_update_to_a_weak_rule_leaves_the_old_one() -> None:
    house = House()
    made = house.rules.create(house.call("CreateTrustRule"), rule())
    with pytest.raises(InvalidRequest):
        house.rules.update(house.call("UpdateTrustRule"), replace(made, audience=""))
    assert house.store.get(TrustRule, "deploy") == made


def test_AZ_05_nobody_gives_a_rule_to_a_pipeline_that_is_not_theirs() -> None:
    house = House()
    made = house.rules.create(house.call("CreateTrustRule", BOB), rule())
    with pytest.raises(PermissionDenied):
        house.rules.create(house.call("CreateTrustRule", BOB), rule("second", pipeline="payments"))
    with pytest.raises(PermissionDenied):
        house.rules.update(house.call("UpdateTrustRule", BOB), replace(made, pipeline="payments"))
    theirs = house.rules.create(house.call("CreateTrustRule"), rule("theirs", pipeline="payments"))
    with pytest.raises(PermissionDenied):
        house.rules.update(house.call("UpdateTrustRule", BOB), replace(theirs, pipeline="deploy"))


def test_the_permission_is_decided_before_anything_is_told() -> None:
    house = House()
    for name in ("deploy", "missing"):
        with pytest.raises(PermissionDenied):
            house.rules.get(house.call("GetTrustRule", BOB), name)
        with pytest.raises(PermissionDenied):
            house.rules.test(house.call("TestTrustRule", BOB), name, "x")
    with pytest.raises(NotFound):
        house.rules.get(house.call("GetTrustRule"), "missing")


def test_deleting_takes_the_rule_away() -> None:
    house = House()
    house.rules.create(house.call("CreateTrustRule"), rule())
    house.rules.delete(house.call("DeleteTrustRule", validate_only=True), "deploy")
    assert house.store.get(TrustRule, "deploy") is not None
    house.rules.delete(house.call("DeleteTrustRule", request_id=REQUEST), "deploy")
    house.rules.delete(house.call("DeleteTrustRule", request_id=REQUEST), "deploy")
    with pytest.raises(NotFound):
        house.rules.delete(house.call("DeleteTrustRule"), "deploy")


def test_a_test_tells_every_claim_with_both_values() -> None:
    house = House()
    house.rules.create(house.call("CreateTrustRule"), rule())
    step = ClaimFinding(name="exp", passed=False, expected="an integer after 5", found="4")
    house.said = verified({"project_id": "43"}, findings=(step,), expires_at=house.clock.time - timedelta(hours=1))
    found = house.rules.test(house.call("TestTrustRule"), "deploy", "x")
    assert [(each.name, each.passed, each.expected, each.found) for each in found] == [
        ("exp", False, "an integer after 5", "4"),
        ("aud", True, "broker", "broker"),
        ("jti", True, "an id, for single use", "t1"),
        ("project_id", False, "42", "43"),
    ]


def test_a_test_tells_nothing_of_claims_that_nobody_signed() -> None:
    house = House()
    house.rules.create(house.call("CreateTrustRule"), rule())
    house.said = Unauthenticated("TOKEN_SIGNATURE", "It does not hold.")
    house.said.facts = {"claim": "signature", "claim_expected": "holds", "claim_found": "does not hold"}
    (finding,) = house.rules.test(house.call("TestTrustRule"), "deploy", "x")
    assert (finding.name, finding.passed, finding.found) == ("signature", False, "does not hold")
