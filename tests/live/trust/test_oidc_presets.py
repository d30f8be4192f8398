"""Jobs of all kinds of CI: a rule that the broker saves, a token of the documented shape, a real issuer behind it.

The issuers of seven presets bear their true names: their names lead to a local server whose certificate is for them.
The eighth is an OpenBao, which this project did not write.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from broker.auth.oidc import Oidc, OidcConfig
from broker.core.errors import Unauthenticated
from broker.core.identity import Credentials
from broker.core.kinds import Preset
from broker.core.model import Principal, TrustRule
from broker.core.trust.rules import MAX_RULES
from tests.fakes.calls import ADMIN, Clock, call, traits_of
from tests.fakes.memory_store import MemoryStore
from tests.servers.issuer import Issuer, Signer, issuing
from tests.servers.openbao import OpenBao
from tests.servers.rules import CIRCLE, EXAMPLES, exact, rule
from tests.worlds.world import World

NAMES = sorted({str(urlsplit(asked.issuer).hostname) for asked, _ in EXAMPLES.values()})
NO_ID = {Preset.CIRCLECI, Preset.BUILDKITE, Preset.BITBUCKET}


class Broker(World):
    """Trust rules saved as an operator saves them, and the authenticator that reads them."""

    def __init__(self, *allowed: str) -> None:
        store = MemoryStore()
        self.oidc = Oidc(OidcConfig(allowed_hosts=frozenset(allowed)), store, lambda: datetime.now(UTC))
        super().__init__(store, verify=self.oidc.inspect, now=lambda: datetime.now(UTC))

    def save(self, asked: TrustRule) -> TrustRule:
        return self.rules.create(self.asked("TrustService/CreateTrustRule"), asked)

    def login(self, token: str, named: str = "") -> Principal:
        metadata = {"authorization": f"Bearer {token}", "broker-trust-rule": named}
        found = self.oidc.authenticate(
            Credentials(
                certificate=None,
                chain_verified=False,
                metadata=metadata,
                peer="",
                rpc="SessionService/Login",
                traits=traits_of("SessionService/Login"),
            )
        )
        assert found is not None
        return found

    def mismatch(self, token: str) -> str:
        """The claim that a refused token failed at."""
        with pytest.raises(Unauthenticated) as refused:
            self.login(token)
        assert refused.value.reason == "TRUST_CLAIM_MISMATCH"
        return str(refused.value.facts["claim"])

    def explained(self, name: str, token: str) -> dict[str, bool]:
        found = self.rules.test(call("TrustService/TestTrustRule", ADMIN, Clock()), name, token)
        return {finding.name: finding.passed for finding in found}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Issuer]:
    """One server that stands for every issuer; no name leads anywhere else."""
    with issuing(tmp_path / "issuer", *NAMES) as issuer:
        here = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", issuer.port))]
        real = socket.getaddrinfo
        # Patched: names of others are looked up, in the system's own way.
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda host, *rest, **more: here if host in NAMES else real(host, *rest, **more)
        )
        yield issuer


def job(preset: Preset, issuer: Issuer) -> tuple[Broker, TrustRule, dict[str, Any]]:
    asked, claims = EXAMPLES[preset]
    found = urlsplit(asked.issuer)
    issuer.address, issuer.path = f"https://{found.hostname}", found.path
    issuer.signers = [Signer("one", "RS256")]
    broker = Broker(f"{found.hostname}:443")
    saved = broker.save(replace(asked, ca_pem=issuer.ca_pem))
    whole = issuer.claims(aud=asked.audience, repository_id=None, **({"jti": None} if preset in NO_ID else {}))
    return broker, saved, {**whole, **claims}


@pytest.mark.parametrize("preset", EXAMPLES)
def test_a_job_of_each_preset_logs_in(world: Issuer, preset: Preset) -> None:
    broker, saved, claims = job(preset, world)
    found = broker.login(world.signers[0].token(claims))
    assert found.proof is not None
    assert (str(found), found.proof.rule, found.proof.issuer) == ("pipeline/deploy", saved.name, saved.issuer)
    assert found.proof.claims.keys() == {matcher.claim for matcher in saved.matchers}
    assert all(broker.explained(saved.name, world.signers[0].token(claims)).values())


@pytest.mark.parametrize("preset", [preset for preset in EXAMPLES if preset is not Preset.KUBERNETES])
def test_each_condition_of_each_preset_counts(world: Issuer, preset: Preset) -> None:
    broker, saved, claims = job(preset, world)
    for matcher in saved.matchers:
        name, value = matcher.claim.replace("//", "/"), f"{matcher.values[0]}x"
        assert broker.mismatch(world.signers[0].token({**claims, name: value})) == matcher.claim
        without = {key: kept for key, kept in claims.items() if key != name}
        assert broker.mismatch(world.signers[0].token(without)) == matcher.claim


OTHERS: dict[str, tuple[Preset, dict[str, Any], str]] = {
    "AN-23: a repository registered anew": (Preset.GITHUB, {"repository_id": "99"}, "repository_id"),
    "AN-23: an owner registered anew": (Preset.GITHUB, {"repository_owner_id": "9"}, "repository_owner_id"),
    "a pull request": (Preset.GITHUB, {"event_name": "pull_request"}, "event_name"),
    "a pull request with rights": (Preset.GITHUB, {"event_name": "pull_request_target"}, "event_name"),
    "a merge request": (Preset.GITLAB, {"pipeline_source": "merge_request_event"}, "pipeline_source"),
    "a branch that is not protected": (Preset.GITLAB, {"ref_protected": "false"}, "ref_protected"),
    "a pull request of Azure": (Preset.AZURE_DEVOPS, {"rpo_ref": "refs/pull/7/merge"}, "rpo_ref"),
    "a job with a person inside": (Preset.CIRCLECI, {"oidc.circleci.com/ssh-rerun": True}, f"{CIRCLE}ssh-rerun"),
    "a fork": (Preset.CIRCLECI, {"oidc.circleci.com/vcs-origin": "github.com/evil/app"}, f"{CIRCLE}vcs-origin"),
    "another organisation": (Preset.BUILDKITE, {"organization_id": "x"}, "organization_id"),
    "a service account made anew": (
        Preset.KUBERNETES, {"kubernetes.io": {"namespace": "ci", "serviceaccount": {"name": "deployer", "uid": "x"}}},
        "kubernetes.io/serviceaccount/uid",
    ),
    "a list where a text is": (Preset.GITLAB, {"project_id": ["20"]}, "project_id"),
    "an object where a text is": (Preset.BITBUCKET, {"workspaceUuid": {"a": 1}}, "workspaceUuid"),
}  # fmt: skip


@pytest.mark.parametrize(("preset", "changes", "claim"), OTHERS.values(), ids=OTHERS.keys())
def test_AN_22_an_outsider_is_refused(world: Issuer, preset: Preset, changes: dict[str, Any], claim: str) -> None:
    broker, _, claims = job(preset, world)
    assert broker.mismatch(world.signers[0].token({**claims, **changes})) == claim


def test_a_rule_among_thousands_from_before_is_not_left_out(world: Issuer) -> None:
    """More than are saved today; a broker of an earlier release may have them."""
    broker, saved, claims = job(Preset.GITHUB, world)
    crowd = [
        replace(saved, name=f"a{number}", matchers=(exact("repository_id", f"x{number}"),))
        for number in range(2 * MAX_RULES)
    ]
    with broker.store.write(call("-", ADMIN, Clock()).outcome()) as write:
        write.add(*crowd)
    assert str(broker.login(world.signers[0].token(claims))) == "pipeline/deploy"


# OpenBao as the issuer


class Baos:
    """An OpenBao whose identity engine issues tokens to entities."""

    def __init__(self, bao: OpenBao, algorithm: str) -> None:
        self.bao, self.name = bao, f"ci-{algorithm.lower()}"
        self.issuer = f"{bao.address}/v1/identity/oidc"
        client = f"{self.name}-audience"
        bao.request("POST", f"identity/oidc/key/{self.name}", {"algorithm": algorithm, "allowed_client_ids": [client]})
        template = '{"project_id": {{identity.entity.metadata.project}}, "nbf": {{time.now}}}'
        made = {"key": self.name, "client_id": client, "ttl": "5m", "template": template}
        bao.request("POST", f"identity/oidc/role/{self.name}", made)
        self.audience = client
        self._user(bao)

    def _user(self, bao: OpenBao) -> None:
        if "userpass/" not in bao.request("GET", "sys/auth")["data"]:
            bao.request("POST", "sys/auth/userpass", {"type": "userpass"})
        text = f'path "identity/oidc/token/{self.name}" {{ capabilities = ["read"] }}'
        bao.request("PUT", f"sys/policies/acl/{self.name}", {"policy": text})
        user = {"password": "job-password", "token_policies": [self.name]}
        bao.request("POST", f"auth/userpass/users/{self.name}", user)
        login = bao.request("POST", f"auth/userpass/login/{self.name}", {"password": "job-password"})["auth"]
        bao.request("POST", f"identity/entity/id/{login['entity_id']}", {"metadata": {"project": "42"}})
        self.entity, self._token = login["entity_id"], login["client_token"]

    def token(self) -> str:
        root, self.bao.root_token = self.bao.root_token, self._token
        try:
            text: str = self.bao.request("GET", f"identity/oidc/token/{self.name}")["data"]["token"]
        finally:
            self.bao.root_token = root
        return text

    def rule(self, **changes: Any) -> TrustRule:
        parts: dict[str, Any] = {
            "issuer": self.issuer, "audience": self.audience, "ca_pem": self.bao.ca_pem, "single_use": False,
            "matchers": (exact("sub", self.entity), exact("project_id", "42")), **changes,
        }  # fmt: skip
        return rule(**parts)


@pytest.mark.parametrize("algorithm", ["ES256", "RS256", "EdDSA", "ES384"])
def test_a_job_logs_in_with_a_token_of_a_real_openbao(openbao: OpenBao, algorithm: str) -> None:
    baos = Baos(openbao, algorithm)
    broker = Broker(openbao.host)
    broker.save(baos.rule())
    found = broker.login(baos.token())
    assert found.proof is not None
    assert (str(found), found.proof.issuer, found.proof.subject) == ("pipeline/deploy", baos.issuer, baos.entity)
    assert dict(found.proof.claims) == {"sub": baos.entity, "project_id": "42"}
    assert found.proof.token_id == ""  # OpenBao's tokens carry none
    assert len(found.credential) == 64
    assert 200 < found.proof.expires_at.timestamp() - time.time() <= 300


def test_a_real_openbao_s_token_opens_nothing_else(openbao: OpenBao) -> None:
    baos, other = Baos(openbao, "ES256"), Baos(openbao, "RS256")
    broker = Broker(openbao.host)
    broker.save(baos.rule())
    with pytest.raises(Unauthenticated) as refused:
        broker.login(other.token())
    assert (refused.value.reason, refused.value.facts["claim_found"]) == ("TOKEN_AUDIENCE", other.audience)
    broker.save(baos.rule(name="single", single_use=True))
    with pytest.raises(Unauthenticated) as refused:
        broker.login(baos.token(), "single")
    assert (refused.value.reason, refused.value.facts["claim"]) == ("TRUST_CLAIM_MISMATCH", "jti")
    head, _, signature = baos.token().rpartition(".")
    with pytest.raises(Unauthenticated) as refused:
        broker.login(f"{head}.{signature[:-4]}AAAA", "deploy")
    assert refused.value.reason == "TOKEN_SIGNATURE"
    assert broker.explained("single", baos.token())["jti"] is False
