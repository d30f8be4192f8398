"""What a job of each kind of CI typically gets wrong: its caller learns a code, the operator the claim and both values.

The broker is a process of its own; a resolver of the test's own leads the true names of the issuers to a local server.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from broker_api.v1 import trust_pb2
from google.protobuf.duration_pb2 import Duration

from broker.core.kinds import MatcherKind, Preset
from broker.core.model import Matcher, TrustRule
from tests.servers.issuer import Issuer, Signer, issuing
from tests.servers.live import ROOT, Client, Live, cli, environment
from tests.servers.live_jobs import Job
from tests.servers.rules import CIRCLE, EXAMPLES, ORG
from tests.servers.warm import as_text, run_command_line

NAMES = sorted({str(urlsplit(asked.issuer).hostname) for asked, _ in EXAMPLES.values()})
RESOLVER = """
import socket
_real = socket.getaddrinfo
def _here(host, *rest, **more):
    if host in {names!r}:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", {port}))]
    return _real(host, *rest, **more)
socket.getaddrinfo = _here
"""
ABSENT = "(absent)"
MISTAKES: dict[Preset, tuple[dict[str, Any], str, str, str]] = {
    # the job names no environment
    Preset.GITHUB: ({"environment": None}, "environment", "prod", ABSENT),
    # a branch that is not protected
    Preset.GITLAB: ({"ref_protected": "false"}, "ref_protected", "true", "false"),
    # a pull request's build
    Preset.AZURE_DEVOPS: ({"rpo_ref": "refs/pull/7/merge"}, "rpo_ref", "refs/heads/main", "refs/pull/7/merge"),
    # a step without `deployment:`
    Preset.BITBUCKET: (
        {"deploymentEnvironmentUuid": None},
        "deploymentEnvironmentUuid", EXAMPLES[Preset.BITBUCKET][0].matchers[2].values[0], ABSENT,
    ),
    # rerun with a person inside
    Preset.CIRCLECI: ({"oidc.circleci.com/ssh-rerun": True}, f"{CIRCLE}ssh-rerun", "false", "true"),
    # another branch
    Preset.BUILDKITE: ({"build_branch": "feature/x"}, "build_branch", "main", "feature/x"),
    # the service account was made anew, under the same name
    Preset.KUBERNETES: (
        {"kubernetes.io": {"namespace": "ci", "serviceaccount": {"name": "deployer", "uid": ORG}}},
        "kubernetes.io/serviceaccount/uid", EXAMPLES[Preset.KUBERNETES][0].matchers[0].values[0], ORG,
    ),
    # another project
    Preset.GENERIC: ({"project_id": "43"}, "project_id", "42", "43"),
}  # fmt: skip


@dataclass
class World:
    """A broker with a rule for each preset, and the one server that stands for every issuer."""

    broker: Live
    admin: Client
    job: Job
    issuer: Issuer

    def token(self, preset: Preset, **changes: Any) -> str:
        """What the CI of that kind signs."""
        asked, claims = EXAMPLES[preset]
        self.become(asked)
        good = self.issuer.claims(aud=asked.audience, repository_id=None) | claims
        return self.issuer.signers[0].token({name: kept for name, kept in (good | changes).items() if kept is not None})

    def become(self, asked: TrustRule) -> None:
        found = urlsplit(asked.issuer)
        self.issuer.address, self.issuer.path = f"https://{found.hostname}", found.path

    def denied(self, token: str) -> tuple[str, str, str, dict[str, Any]]:
        """(status, reason, sentence) as the caller is told, and the record of that very call."""
        before = len(self.broker.records())
        error = self.job.refusal("Login", token)
        (record,) = [one for one in self.broker.records()[before:] if one.get("call") == error.call_id]
        return error.code, error.reason, error.sentence, record


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    with issuing(folder / "issuer", *NAMES) as issuer:
        issuer.signers = [Signer("one", "RS256")]
        (folder / "resolver").mkdir()
        (folder / "resolver" / "sitecustomize.py").write_text(RESOLVER.format(names=NAMES, port=issuer.port))
        allowed = [word for name in NAMES for word in ("--allow-issuer", f"{name}:443")]
        broker = Live(folder / "broker", *allowed)
        try:
            broker.start(extra={"PYTHONPATH": f"{folder / 'resolver'}:{environment()['PYTHONPATH']}"})
            admin = broker.client()
            for preset, (asked, _) in EXAMPLES.items():
                admin.ask(
                    "CreateTrustRule",
                    rule=wire(replace(asked, name=preset.value, pipeline=preset.value, ca_pem=issuer.ca_pem)),
                )
            yield World(broker, admin, Job(broker), issuer)
        finally:
            broker.close()


def wire(rule: TrustRule) -> trust_pb2.TrustRule:
    """The rule as an operator sends it."""
    return trust_pb2.TrustRule(
        name=rule.name, preset=trust_pb2.Preset.Value(f"PRESET_{rule.preset.name}"), issuer=rule.issuer,
        audience=rule.audience, matchers=map(matcher, rule.matchers), pipeline=rule.pipeline,
        max_session=Duration(seconds=rule.max_session_seconds), single_use=rule.single_use, ca_pem=rule.ca_pem,
    )  # fmt: skip


def matcher(one: Matcher) -> trust_pb2.Matcher:
    if one.kind is MatcherKind.EXACT:
        return trust_pb2.Matcher(claim=one.claim, exact=one.values[0])
    assert one.kind is MatcherKind.ONE_OF
    return trust_pb2.Matcher(claim=one.claim, one_of=trust_pb2.Choices(values=one.values))


@pytest.mark.parametrize("preset", MISTAKES)
def test_a_mistake_is_a_code_to_the_caller_and_a_claim_with_both_values_to_the_operator(
    world: World, preset: Preset, tmp_path: Path
) -> None:
    changes, claim, expected, found = MISTAKES[preset]
    world.job.ask("Login", world.token(preset))  # all is well but for the mistake
    token = world.token(preset, **changes)
    code, reason, sentence, record = world.denied(token)
    assert (code, reason) == ("UNAUTHENTICATED", "TRUST_CLAIM_MISMATCH")
    assert not [one for one in (claim, expected, found, preset.value) if one in sentence and one != "true"]
    facts = {name: record["facts"][name] for name in ("claim", "claim_expected", "claim_found", "trust_rule")}
    assert facts == {"claim": claim, "claim_expected": expected, "claim_found": found, "trust_rule": preset.value}
    (tmp_path / "token").write_text(token)
    (tmp_path / "token").chmod(0o600)
    profile = world.broker.folder / "profile"
    words = ["trust", "test", preset.value, "--token-file", str(tmp_path / "token"), "--format", "json"]
    told = cli(*words, profile=profile)
    assert told.returncode == 10, told.stderr
    wrong = [one for one in json.loads(told.stdout) if not one["passed"]]
    assert [(one["name"], one["expected"], one["found"]) for one in wrong] == [(claim, expected, found)]


@pytest.mark.parametrize("preset", EXAMPLES)
def test_the_audience_that_the_ci_gives_by_itself_is_told_to_the_operator(world: World, preset: Preset) -> None:
    token = world.token(preset, aud="https://ci.example/org")
    code, reason, sentence, record = world.denied(token)
    assert (code, reason, "ci.example" in sentence) == ("UNAUTHENTICATED", "TOKEN_AUDIENCE", False)
    audience = EXAMPLES[preset][0].audience
    facts = {name: record["facts"][name] for name in ("claim", "claim_expected", "claim_found")}
    assert facts == {"claim": "aud", "claim_expected": audience, "claim_found": "https://ci.example/org"}
    findings = world.admin.ask("TestTrustRule", name=preset.value, identity_token=token).findings
    assert {(one.name, one.expected, one.found) for one in findings if not one.passed} == {
        ("aud", audience, "https://ci.example/org")
    }


def test_a_job_without_the_right_to_ask_for_a_token_is_told_which_one(world: World, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(world.broker.ca)
    words = ["--address", world.broker.pipelines, "--ca-file", str(tmp_path / "ca.pem"), "--audience", "broker"]
    for jobs, sentence in (
        ({"GITHUB_ACTIONS": "true"}, "The job lacks `permissions: id-token: write`"),
        ({"TF_BUILD": "True"}, "SYSTEM_ACCESSTOKEN"),
        ({"GITLAB_CI": "true"}, "id_tokens"),
        ({"BITBUCKET_BUILD_NUMBER": "1"}, "oidc: true"),
    ):
        line = ("run", *words, "--secret", "A=broker://team/x#a", "--", "true")
        done = as_text(run_command_line(line, environment=environment() | jobs, folder=ROOT))
        assert (done.returncode, sentence.lower() in done.stderr.lower()) == (done.returncode or 1, True), done.stderr


def test_AZ_16_one_subject_of_two_issuers_is_two_principals(world: World) -> None:
    """The same subject, e-mail and token id say nothing: who somebody is begins with who says so."""
    same = {"sub": "job", "email": "dev@example.org", "user_email": "dev@example.org", "jti": str(uuid4())}
    first = world.job.ask("Login", world.token(Preset.GENERIC, **same))
    second = world.job.ask("Login", world.token(Preset.GITLAB, **same))
    assert [one.session.principal for one in (first, second)] == ["pipeline/generic", "pipeline/gitlab"]
    assert world.admin.ask("RevokeSessions", claim=f"{EXAMPLES[Preset.GENERIC][0].issuer} sub=job").ended >= 1
    assert world.job.why_not("RenewSession", first.session_token) == "SESSION_INVALID"
    world.job.ask("RenewSession", second.session_token)
    told = [one for one in world.broker.records() if one.get("facts", {}).get("token_id") == same["jti"]]
    assert {(one["principal"], one["facts"]["issuer"]) for one in told} == {
        ("pipeline/generic", EXAMPLES[Preset.GENERIC][0].issuer),
        ("pipeline/gitlab", EXAMPLES[Preset.GITLAB][0].issuer),
    }
