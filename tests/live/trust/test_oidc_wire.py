"""Identity over the wire: the gate, the audit, TrustService, and the command line before it (AN-31, AN-33)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from broker_api.v1 import sessions_pb2, sessions_pb2_grpc, trust_pb2
from broker_cli import words
from broker_cli.main import run
from grpc_status import rpc_status

from broker.auth.mtls import Mtls, MtlsConfig
from broker.auth.oidc import Oidc, OidcConfig
from broker.core.model import TrustRule
from broker.rpc.pages import PageTokens
from broker.rpc.server import Server
from broker.rpc.trust import TrustMethods
from tests.fakes.calls import Clock, asking, call
from tests.fakes.calls import operator as caller
from tests.fakes.memory_store import MemoryStore
from tests.servers.edge import (
    authority,
    configure,
    issue,
    operator,
    operator_certificate,
    plain_services,
    server_certificate,
)
from tests.servers.issuer import Issuer, Signer, issuing
from tests.servers.refusals import on_the_wire
from tests.worlds.world import World


def now() -> datetime:
    return datetime.now(UTC)


@dataclass
class House:
    """A listening edge with identity on it; who logs in is written down in ``seen``."""

    folder: Path
    store: MemoryStore
    issuer: Issuer
    server: Server
    ca: bytes
    seen: list[Any]

    def login(self, *metadata: tuple[str, str], rpc: str = "Login") -> Any:
        """Call from the outside as a job does: without a certificate."""
        credentials = grpc.ssl_channel_credentials(self.ca)
        with grpc.secure_channel(f"localhost:{self.server.pipelines_port}", credentials) as channel:
            stub = sessions_pb2_grpc.SessionServiceStub(channel)
            return getattr(stub, rpc)(getattr(sessions_pb2, f"{rpc}Request")(), metadata=metadata, timeout=200)

    def why_not(self, *metadata: tuple[str, str], rpc: str = "Login") -> tuple[str, str]:
        """(reason, everything that the caller was told) of a call that must be refused."""
        with pytest.raises(grpc.RpcError) as error:
            self.login(*metadata, rpc=rpc)
        return on_the_wire(error.value).reason, f"{error.value} {rpc_status.from_call(error.value)}"  # type: ignore[arg-type]

    def cli(self, *arguments: str) -> int:
        flags = ("--address", f"localhost:{self.server.operators_port}", "--ca-file", f"{self.folder}/ca.pem")
        client = ("--cert", f"{self.folder}/alice.pem", "--key", f"{self.folder}/alice.key")
        return run([*arguments, *flags, *client])

    def save(self, *more: str, name: str = "deploy") -> int:
        (self.folder / "issuer-ca.pem").write_text(self.issuer.ca_pem)
        return self.cli(
            "trust", "add", name, "--preset", "generic", "--issuer", self.issuer.url, "--audience", "broker",
            "--pipeline", "deploy", "--match", "repository_id=42", "--issuer-ca-file", f"{self.folder}/issuer-ca.pem",
            *more,
        )  # fmt: skip


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setenv("HOME", str(tmp_path))
    ca, operators = issue("servers", ca=True), authority()
    config = configure(tmp_path, server_certificate(ca), operators, threads=4)
    store, seen = MemoryStore(), []
    with store.write(call("-", caller(), Clock()).outcome()) as write:
        write.add(operator())
    with issuing(tmp_path / "issuer") as issuer:
        oidc = Oidc(OidcConfig(allowed_hosts=frozenset({issuer.host})), store, now)
        rules = World(store, verify=oidc.inspect, now=now).rules

        def login(made: Any, _request: Any) -> sessions_pb2.LoginResponse:
            seen.append(made.principal)
            return sessions_pb2.LoginResponse(session_token="brs_x")

        services = {
            **plain_services({"SessionService/Login": login}),
            "TrustService": TrustMethods(rules, PageTokens(b"p" * 32)),
        }
        mtls = Mtls(MtlsConfig(operator_ca_file=config.operator_ca_file), store, now)
        server = Server(config, services, [mtls, oidc], store, now, asking=asking(store))
        alice = operator_certificate(operators)
        for name, content in {"ca.pem": ca.pem, "alice.pem": alice.pem, "alice.key": alice.key_pem}.items():
            (tmp_path / name).write_bytes(content)
            (tmp_path / name).chmod(0o600)
        server.start()
        server.set_serving(True)
        try:
            yield House(tmp_path, store, issuer, server, ca.pem, seen)
        finally:
            server.drain(grace=1)


def bearer(token: str) -> tuple[str, str]:
    return "authorization", f"Bearer {token}"


def test_a_job_calls_with_its_token_and_the_audit_says_who(house: House) -> None:
    assert house.save() == 0
    token = house.issuer.token(jti="job-7")
    assert house.login(bearer(token)).session_token == "brs_x"
    (principal,) = house.seen
    assert (str(principal), principal.method, principal.credential) == ("pipeline/deploy", "oidc", "job-7")
    last = house.store.entries[-1]
    assert (last.principal, last.authn, last.credential, last.outcome) == ("pipeline/deploy", "oidc", "job-7", "ok")


def test_the_caller_is_told_a_code_and_the_audit_the_claim_with_both_values(house: House) -> None:
    house.save()
    house.store.entries.clear()
    token = house.issuer.token(repository_id="canary-9")
    reason, told = house.why_not(bearer(token))
    assert reason == "TRUST_CLAIM_MISMATCH"
    for canary in ("canary-9", "repository_id", "42'", house.issuer.url, token):
        assert canary not in told
    (entry,) = house.store.entries
    assert (entry.outcome, entry.reason, entry.principal) == ("UNAUTHENTICATED", "TRUST_CLAIM_MISMATCH", "")
    facts = {name: entry.facts[name] for name in ("claim", "claim_expected", "claim_found", "trust_rule", "issuer")}
    assert facts == {
        "claim": "repository_id", "claim_expected": "42", "claim_found": "canary-9", "trust_rule": "deploy",
        "issuer": house.issuer.url,
    }  # fmt: skip
    assert token.rpartition(".")[2] not in str(entry)


def test_AN_31_one_authorization_and_one_rule_count(house: House) -> None:
    house.save()
    good = bearer(house.issuer.token())
    for twice in (
        (good, good),
        (good, bearer("brs_x")),
        (good, ("broker-trust-rule", "a"), ("broker-trust-rule", "a")),
    ):
        assert house.why_not(*twice)[0] == "CREDENTIALS_AMBIGUOUS"
    assert house.seen == []


@pytest.mark.parametrize(
    "name", ["authorization-x", "x-authorization", "x-forwarded-client-cert", "x-user", "broker-principal", "cookie"]
)
def test_AN_31_no_other_header_says_who_calls(house: House, name: str) -> None:
    house.save()
    assert house.why_not((name, f"Bearer {house.issuer.token()}"))[0] == "CREDENTIALS_MISSING"


def test_AN_31_a_binary_header_says_nothing(house: House) -> None:
    house.save()
    with pytest.raises(grpc.RpcError):
        house.login(("authorization-bin", house.issuer.token().encode()))  # type: ignore[arg-type]
    assert house.seen == []


def test_a_header_names_the_rule(house: House) -> None:
    house.save()
    house.save(name="second")
    good = bearer(house.issuer.token())
    assert house.why_not(good)[0] == "TRUST_AMBIGUOUS"
    assert house.why_not(good, ("broker-trust-rule", "third"))[0] == "TRUST_CLAIM_MISMATCH"
    house.login(good, ("broker-trust-rule", "second"))
    assert house.seen[-1].proof.rule == "second"


def test_an_identity_token_serves_no_other_method(house: House) -> None:
    house.save()
    for rpc in ("RenewSession", "EndSession", "ListSessions"):
        assert house.why_not(bearer(house.issuer.token()), rpc=rpc)[0] == "TOKEN_NOT_HERE"


def test_AN_33_a_flood_is_counted_by_where_it_comes_from(house: House) -> None:
    flood(house, 75)


@pytest.mark.soak
def test_AN_33_a_longer_flood_is_counted_by_where_it_comes_from(house: House) -> None:
    flood(house, 300)


def flood(house: House, count: int) -> None:
    house.store.entries.clear()
    evil = Signer("one")
    for number in range(count):
        spelt = f"https://ci{number}.example" if number % 2 else "https://CI.example "
        assert house.why_not(bearer(evil.token(house.issuer.claims(iss=spelt))))[0] == "TOKEN_ISSUER"
    assert len(house.store.entries) < count


def test_a_rule_is_added_shown_changed_listed_and_deleted(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    assert house.save("--max-session", "600", "--format", "json") == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["grade"], made["preset"], made["max_session"], made["single_use"]) == ("A", "generic", 600, True)
    assert made["match"] == {"repository_id": "42"}
    file = house.folder / "rule.yaml"
    file.write_text(
        f"preset: generic\nissuer: {house.issuer.url}\naudience: other\npipeline: deploy\nsingle_use: false\n"
        "match:\n  repository_id: 42\n  ref: [main, release]\n  path: {glob: a/*}\n  safe: true\n"
    )
    assert house.cli("trust", "update", "deploy", "--file", str(file)) == 0
    stored = house.store.get(TrustRule, "deploy")
    assert stored is not None
    assert (stored.audience, stored.revision, stored.single_use, stored.grade) == ("other", 2, False, "B")
    assert {one.claim: (one.kind.value, one.values) for one in stored.matchers} == {
        "repository_id": ("exact", ("42",)), "ref": ("one-of", ("main", "release")), "path": ("glob", ("a/*",)),
        "safe": ("exact", ("true",)),
    }  # fmt: skip
    assert house.cli("trust", "list") == 0
    assert house.issuer.url in capsys.readouterr().out
    assert house.cli("trust", "show", "deploy", "--format", "yaml") == 0
    assert house.cli("trust", "delete", "deploy", "--yes") == 0
    assert house.cli("trust", "show", "deploy") == 6


def test_a_rule_in_toml_is_the_same(house: House) -> None:
    file = house.folder / "rule.toml"
    file.write_text(
        f'preset = "generic"\nissuer = "{house.issuer.url}"\naudience = "broker"\npipeline = "deploy"\n'
        '[match]\nrepository_id = "42"\nref = {glob = "refs/heads/*"}\n'
    )
    assert house.cli("trust", "add", "deploy", "-f", str(file)) == 0
    stored = house.store.get(TrustRule, "deploy")
    assert stored is not None
    assert [one.kind.value for one in stored.matchers] == ["exact", "glob"]


@pytest.mark.parametrize("text", [
    "- a", "a: [", "unknown: 1",
    "match: [a]", "match: {a: {regex: b}}", "match: {a: 1.5}", "match: {a: []}", "issuer: 7",
    "preset: other", "single_use: 'yes'", "max_session: long", "\xff", "match: {a: !!python/object:os.system 1}", "",
])  # fmt: skip
def test_a_file_that_is_no_rule_is_refused_here(house: House, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = house.folder / "rule.yaml"
    file.write_bytes(text.encode("latin-1"))
    assert house.cli("trust", "add", "deploy", "--file", str(file)) == 2
    assert "TRUST_RULE_FILE" in capsys.readouterr().err


def test_AN_22_a_weak_rule_is_graded_and_not_saved(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    weak = (
        "--preset", "github", "--issuer", "https://token.actions.githubusercontent.com", "--audience", "broker",
        "--pipeline", "deploy", "--glob", "sub=repo:org/*",
    )  # fmt: skip
    assert house.cli("trust", "add", "deploy", *weak) != 0
    told = capsys.readouterr().err
    assert "TRUST_RULE_WEAK" in told
    for reason in ("repository_id", "sub is an identity", "pull requests", "all organisations"):
        assert reason in told
    assert house.cli("trust", "lint", "deploy", *weak, "--format", "json") == 10
    assert json.loads(capsys.readouterr().out)["grade"] == "F"
    assert house.store.get(TrustRule, "deploy") is None


def test_lint_grades_a_rule_that_is_there_as_well(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    same = (
        "trust", "lint", "deploy", "--preset", "generic", "--issuer", house.issuer.url, "--audience", "broker",
        "--pipeline", "deploy", "--match", "repository_id=42", "--format", "json",
    )  # fmt: skip
    assert house.cli(*same) == 0
    house.save()
    capsys.readouterr()
    assert house.cli(*same, "--match", "repository_id=43") == 0
    assert json.loads(capsys.readouterr().out) == {"grade": "A", "findings": []}
    stored = house.store.get(TrustRule, "deploy")
    assert stored is not None
    assert stored.revision == 1


def test_trust_test_explains_claim_by_claim(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    house.save("--match", "ref=main")
    file = house.folder / "job.jwt"
    file.write_text(house.issuer.token(ref="main") + "\n")
    capsys.readouterr()
    assert house.cli("trust", "test", "deploy", "--token-file", str(file), "--format", "json") == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert {"iss", "signature", "exp", "iat", "nbf", "aud", "sub", "jti", "repository_id", "ref"} <= found.keys()
    assert all(one["passed"] for one in found.values())
    file.write_text(house.issuer.token(ref="evil", exp=int(time.time()) - 100, iat=int(time.time()) - 200))
    assert house.cli("trust", "test", "deploy", "--token-file", str(file), "--format", "json") == 10
    failed = {
        one["name"]: (one["expected"], one["found"]) for one in json.loads(capsys.readouterr().out) if not one["passed"]
    }
    assert failed.keys() == {"exp", "ref"}
    assert failed["ref"] == ("main", "evil")
    file.write_text(Signer("one").token(house.issuer.claims(ref="main")))
    assert house.cli("trust", "test", "deploy", "--token-file", str(file), "--format", "json") == 10
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == ["signature"]
    assert house.seen == []


def test_the_words_of_the_presets_are_those_of_the_wire() -> None:
    wire = [words.word(trust_pb2.Preset.DESCRIPTOR, number) for number in trust_pb2.Preset.values() if number]
    assert sorted(wire) == sorted(words.PRESETS)


def test_P19_a_rule_for_kubernetes_takes_the_token_that_the_kubelet_keeps(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    (house.folder / "issuer-ca.pem").write_text(house.issuer.ca_pem)
    made = (
        "--preset", "kubernetes", "--issuer", house.issuer.url, "--audience", "broker", "--pipeline", "deploy",
        "--match", "kubernetes.io/serviceaccount/uid=u-1", "--match", "kubernetes.io/namespace=ci",
        "--issuer-ca-file", f"{house.folder}/issuer-ca.pem",
    )  # fmt: skip
    assert house.cli("trust", "lint", "deploy", *made, "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []
    assert house.cli("trust", "lint", "deploy", *made, "--single-use", "--format", "json") == 0
    assert "logs in once" in capsys.readouterr().out
    assert house.cli("trust", "add", "deploy", *made) == 0
    stored = house.store.get(TrustRule, "deploy")
    assert stored is not None
    assert not stored.single_use
    projected = house.issuer.token(**{"kubernetes.io": {"serviceaccount": {"uid": "u-1"}, "namespace": "ci"}})
    for _ in range(3):
        house.login(bearer(projected))


def test_P20_P27_a_rule_file_s_ids_and_lists_are_what_is_written(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    (house.folder / "issuer-ca.pem").write_text(house.issuer.ca_pem)
    file = house.folder / "rule.yaml"
    text = (
        f"preset: generic\nissuer: {house.issuer.url}\naudience: broker\npipeline: deploy\n"
        "match:\n  project_id: 0123\n  environment: on\n  groups_direct: {contains: team/deployers}\n"
    )
    file.write_text(text)
    ca = ("--issuer-ca-file", f"{house.folder}/issuer-ca.pem")
    assert house.cli("trust", "add", "deploy", "-f", str(file), *ca) == 0
    capsys.readouterr()
    assert house.cli("trust", "show", "deploy", "--format", "json") == 0
    shown = json.loads(capsys.readouterr().out)["match"]
    assert shown == {
        "project_id": "0123", "environment": "on", "groups_direct": {"contains": "team/deployers"},
    }  # fmt: skip
    claims: dict[str, Any] = {"project_id": "0123", "environment": "on", "groups_direct": ["team", "team/deployers"]}
    house.login(bearer(house.issuer.token(**claims)))
    for changes in ({"project_id": "83"}, {"environment": True}, {"groups_direct": "team/deployers"},
                    {"groups_direct": ["team"]}):  # fmt: skip
        assert house.why_not(bearer(house.issuer.token(**{**claims, **changes})))[0] == "TRUST_CLAIM_MISMATCH"
    file.write_text(text.replace("{contains: team/deployers}", "team/deployers"))
    assert house.cli("trust", "update", "deploy", "-f", str(file), *ca) == 1
    assert "write {contains: VALUE}" in capsys.readouterr().err
