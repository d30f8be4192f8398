"""How trust rules are graded, and which are never saved (AN-22)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from broker.core.errors import InvalidRequest
from broker.core.kinds import MatcherKind, Preset
from broker.core.model import Matcher, TrustRule
from broker.core.trust.presets import PROFILES
from broker.core.trust.rules import grade, match
from tests.fakes.trust_house import House
from tests.servers.rules import CIRCLE, EXAMPLES, exact, glob, one_of, rule


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
    "generic: github's issuer": (
        rule(issuer="https://token.actions.githubusercontent.com", matchers=(exact("sub", "repo:o/r:pull_request"),)),
        "take that preset",
    ),
    "gitlab: github's issuer": (
        without(Preset.GITLAB, issuer="https://token.actions.githubusercontent.com"), "take that preset",
    ),
    "generic: gitlab.com": (rule(issuer="https://gitlab.com"), "take that preset"),
    "azure: one number": (with_(Preset.AZURE_DEVOPS, glob("rpo_ref", "refs/*/2*/merge")), "pull requests"),
    "azure: a number's end": (with_(Preset.AZURE_DEVOPS, glob("rpo_ref", "refs/pul*/*7/*")), "pull requests"),
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
def test_AN_22_a_rule_that_lets_outsiders_in_is_not_saved(asked: TrustRule, reason: str) -> None:
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
