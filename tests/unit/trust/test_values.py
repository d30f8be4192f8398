"""Grades look at what a claim is matched to, and not only at whether it is matched (AN-22)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.core.kinds import MatcherKind, Preset
from broker.core.model import Matcher, TrustRule
from broker.core.trust.presets import PROFILES
from broker.core.trust.rules import grade
from tests.servers.rules import CIRCLE, EXAMPLES, contains, exact, glob, one_of

GITHUB, GITLAB, AZURE, BITBUCKET = Preset.GITHUB, Preset.GITLAB, Preset.AZURE_DEVOPS, Preset.BITBUCKET
CIRCLECI, BUILDKITE, KUBERNETES, GENERIC = Preset.CIRCLECI, Preset.BUILDKITE, Preset.KUBERNETES, Preset.GENERIC


def with_(preset: Preset, *matchers: Matcher) -> TrustRule:
    asked, _ = EXAMPLES[preset]
    claims = {one.claim for one in matchers}
    return replace(asked, matchers=(*(one for one in asked.matchers if one.claim not in claims), *matchers))


TRIGGERS = (
    "issues", "issue_comment", "discussion", "discussion_comment", "fork", "watch", "workflow_run", "check_run",
    "check_suite", "status", "gollum", "page_build", "public", "label", "milestone", "merge_group", "member",
    "pull_request", "pull_request_target", "pull_request_review", "pull_request_review_comment", "pull_request_new",
    "deployment_status", "registry_package", "image_version", "Push", "not_invented_yet",
)  # fmt: skip
SOURCES = (
    "merge_request_event", "external_pull_request_event", "parent_pipeline", "pipeline", "trigger", "external", "chat",
    "ondemand_dast_scan", "unknown", "not_invented_yet",
)  # fmt: skip


@pytest.mark.parametrize(("preset", "claim", "value"), [
    *((GITHUB, "event_name", value) for value in TRIGGERS),
    *((GITLAB, "pipeline_source", value) for value in SOURCES),
])  # fmt: skip
def test_AN_22_a_trigger_that_is_not_on_the_list_is_graded_down(preset: Preset, claim: str, value: str) -> None:
    usual = PROFILES[preset].started[claim][0]
    for matcher in (exact(claim, value), one_of(claim, usual, value)):
        letter, reasons = grade(with_(preset, matcher))
        assert letter == "D"
        assert any(one.startswith("D") and value in one for one in reasons), reasons


LISTED = [
    (preset, claim, value)
    for preset, profile in PROFILES.items()
    for claim, values in profile.started.items()
    for value in values
]


@pytest.mark.parametrize(("preset", "claim", "value"), LISTED)
def test_what_is_on_the_list_is_as_good_as_the_example(preset: Preset, claim: str, value: str) -> None:
    usual = grade(EXAMPLES[preset][0])[0]
    assert grade(with_(preset, exact(claim, f"{value}main" if value.endswith("/") else value)))[0] == usual


def test_every_trigger_is_by_a_list() -> None:
    """Bitbucket tells nothing by its claims of who started a run, Buildkite a fork by its branch alone."""
    for preset in (GITHUB, GITLAB, AZURE, CIRCLECI):
        assert set(PROFILES[preset].trigger) <= PROFILES[preset].started.keys()


VALUES: dict[str, tuple[TrustRule, str, str]] = {
    "github: a ref that is not protected": (with_(GITHUB, exact("ref_protected", "false")), "D", "ref_protected"),
    "github: protected or not": (with_(GITHUB, one_of("ref_protected", "true", "false")), "D", "ref_protected"),
    "github: any protection": (with_(GITHUB, glob("ref_protected", "*")), "D", "ref_protected"),
    "github: protection by half a pattern": (with_(GITHUB, glob("ref_protected", "*e")), "D", "ref_protected"),
    "github: a protection that never is": (with_(GITHUB, exact("ref_protected", "True")), "D", "ref_protected"),
    "github: a pull request": (with_(GITHUB, exact("ref", "refs/pull/1/merge")), "D", "pull requests"),
    "github: a pull request among others": (
        with_(GITHUB, one_of("ref", "refs/heads/main", "refs/pull/1/merge")), "D", "refs/pull/1/merge",
    ),
    "github: a pattern that fits pull requests": (with_(GITHUB, glob("ref", "refs/*/*/merge")), "D", "pull requests"),
    "github: a pattern for pull requests": (with_(GITHUB, glob("ref", "refs/pull/*/merge")), "D", "pull requests"),
    "github: a ref that is none": (with_(GITHUB, exact("ref", "main")), "D", "main"),
    "github: a merge group": (with_(GITHUB, exact("event_name", "merge_group")), "D", "merge_group"),
    "github: a branch to merge into": (with_(GITHUB, exact("base_ref", "main")), "D", "base_ref"),
    "github: a branch to merge": (with_(GITHUB, exact("head_ref", "feature")), "D", "head_ref"),
    "github: a subject of pull requests": (with_(GITHUB, exact("sub", "repo:o/r:pull_request")), "D", "pull requests"),
    "github: a workflow of a pull request": (
        with_(GITHUB, exact("job_workflow_ref", "o/r/.github/workflows/d.yml@refs/pull/7/merge")), "D", "pull requests",
    ),
    "github: another service's audience": (
        replace(EXAMPLES[GITHUB][0], audience="sts.amazonaws.com"), "C", "another service",
    ),
    "gitlab: a ref that is not protected": (with_(GITLAB, exact("ref_protected", "false")), "D", "ref_protected"),
    "gitlab: an environment that is not protected": (
        with_(GITLAB, exact("environment_protected", "false")), "D", "environment_protected",
    ),
    "gitlab: a merge request": (with_(GITLAB, exact("ref_path", "refs/merge-requests/1/head")), "D", "pull requests"),
    "gitlab: a pattern that fits merge requests": (
        with_(GITLAB, glob("ref_path", "refs/*/*/head")), "D", "pull requests",
    ),
    "gitlab: a file of a merge request": (
        with_(GITLAB, exact("ci_config_ref_uri", "gitlab.com/g/p//.gitlab-ci.yml@refs/merge-requests/1/head")),
        "D", "pull requests",
    ),
    "gitlab: the issuer as audience": (replace(EXAMPLES[GITLAB][0], audience="https://gitlab.com"), "C", "the issuer"),
    "azure: a pull request": (with_(AZURE, exact("rpo_ref", "refs/pull/1/merge")), "D", "pull requests"),
    "azure: neither a branch nor a tag": (with_(AZURE, exact("rpo_ref", "refs/notes/x")), "D", "refs/notes/x"),
    "azure: a branch's short name": (with_(AZURE, exact("rpo_ref", "main")), "D", "main"),
    "circleci: with a person inside": (with_(CIRCLECI, exact(f"{CIRCLE}ssh-rerun", "true")), "D", "ssh-rerun"),
    "circleci: with or without": (with_(CIRCLECI, one_of(f"{CIRCLE}ssh-rerun", "false", "true")), "D", "ssh-rerun"),
    "circleci: any of them": (with_(CIRCLECI, glob(f"{CIRCLE}ssh-rerun", "*e")), "D", "ssh-rerun"),
    "circleci: a pull request": (with_(CIRCLECI, exact(f"{CIRCLE}vcs-ref", "refs/pull/3")), "D", "pull requests"),
    "circleci: no branch": (with_(CIRCLECI, exact(f"{CIRCLE}vcs-ref", "pull/3")), "D", "pull/3"),
    "buildkite: a fork": (with_(BUILDKITE, exact("build_branch", "evil:main")), "D", "fork"),
    "buildkite: a pattern that fits forks": (with_(BUILDKITE, glob("build_branch", "release-*")), "D", "forks"),
    "kubernetes: everybody's account by name": (
        with_(KUBERNETES, exact("kubernetes.io/serviceaccount/name", "default")), "C", "every pod",
    ),
    "kubernetes: everybody's account": (
        with_(KUBERNETES, exact("sub", "system:serviceaccount:ci:default")), "C", "every pod",
    ),
    "kubernetes: the issuer as audience": (
        replace(EXAMPLES[KUBERNETES][0], issuer="https://k8s.example/", audience="https://k8s.example"), "F", "issuer",
    ),
    "generic: a fork's event": (with_(GENERIC, exact("event_name", "fork")), "D", "outsiders"),
    "generic: a pull request": (with_(GENERIC, exact("event_name", "pull_request_target")), "D", "outsiders"),
    "generic: a merge request": (with_(GENERIC, exact("pipeline_source", "merge_request_event")), "D", "outsiders"),
    "generic: a pull request's ref": (with_(GENERIC, exact("git/ref", "refs/pull/1/merge")), "D", "pull requests"),
    "gitlab: a list as a text": (with_(GITLAB, exact("groups_direct", "team")), "F", "write {contains: VALUE}"),
    "gitlab: a list as one of several": (with_(GITLAB, one_of("groups_direct", "a", "b")), "F", "is a list"),
    "gitlab: a list as a pattern": (with_(GITLAB, glob("groups_direct", "team/*")), "F", "is a list"),
    "gitlab: no list as one": (with_(GITLAB, contains("ref_path", "refs/heads/x")), "F", "one value and no list"),
    "gitlab: the audience": (with_(GITLAB, exact("aud", "broker")), "F", "audience already"),
    "circleci: a list as a text": (with_(CIRCLECI, exact(f"{CIRCLE}context-ids", "1")), "F", "is a list"),
    "kubernetes: single use": (replace(EXAMPLES[KUBERNETES][0], single_use=True), "B", "make tokens reusable"),
    "generic: not protected": (with_(GENERIC, exact("ref_protected", "false")), "D", "ref_protected"),
}  # fmt: skip


@pytest.mark.parametrize(("asked", "letter", "reason"), VALUES.values(), ids=VALUES.keys())
def test_AN_22_a_value_that_keeps_nobody_out_is_graded_down(asked: TrustRule, letter: str, reason: str) -> None:
    found, reasons = grade(asked)
    assert found == letter, reasons
    assert any(one.startswith(letter) and reason in one for one in reasons), reasons


GOOD: dict[str, TrustRule] = {
    "github: protected": with_(GITHUB, exact("ref_protected", "true")),
    "github: a branch": with_(GITHUB, exact("ref", "refs/heads/main")),
    "github: a branch called pull": with_(GITHUB, exact("ref", "refs/heads/pull/1/merge")),
    "gitlab: both protected": with_(GITLAB, exact("environment_protected", "true")),
    "gitlab: a group among several": with_(GITLAB, contains("groups_direct", "team/deployers")),
    "gitlab: a tag": with_(GITLAB, exact("ref_path", "refs/tags/v1")),
    "buildkite: a branch in a folder": with_(BUILDKITE, exact("build_branch", "release/1:2")),
    "kubernetes: an account of its own": with_(KUBERNETES, exact("sub", "system:serviceaccount:ci:default-deployer")),
    "generic: a push": with_(GENERIC, exact("event_name", "push")),
}


@pytest.mark.parametrize("asked", GOOD.values(), ids=GOOD.keys())
def test_a_value_that_narrows_costs_nothing(asked: TrustRule) -> None:
    assert grade(asked)[0] == grade(EXAMPLES[asked.preset][0])[0]


@pytest.mark.parametrize("pattern", ["release/*", "v1/*/x"])
def test_a_pattern_that_no_fork_fits_stays_a_b(pattern: str) -> None:
    assert grade(with_(BUILDKITE, glob("build_branch", pattern)))[0] == "B"


def test_a_flag_that_is_wrong_does_not_count_as_hardening() -> None:
    asked = with_(GITLAB, exact("ref_protected", "false"))
    assert any("Could be narrower" in reason and "ref_protected" in reason for reason in grade(asked)[1])


def test_every_kind_of_matcher_is_looked_at() -> None:
    assert {one.kind for rule, _, _ in VALUES.values() for one in rule.matchers} == set(MatcherKind)
