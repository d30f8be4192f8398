"""Between the broker and a vault: lies in challenges, lost answers, busy vaults, other servers, and what is logged."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.core.errors import BrokerError, Unavailable
from broker.core.kinds import SignatureAlgorithm
from broker.targets import https
from broker.targets.azure_key_vault.connection import Connection
from tests.fakes.refusals import refused
from tests.live.targets.test_azure_target import SHA1, Bench, cargo
from tests.servers.azure import kek_of, target_of
from tests.servers.azure_key_vault import (
    Effect,
    FakeVault,
    Refused,
    conflict,
    forbidden,
    insufficient_claims,
    throttled,
    unauthorized,
    unavailable,
)
from tests.servers.openbao import self_signed


@pytest.fixture
def bench(premium: FakeVault, tmp_path: Path) -> Bench:
    return Bench(premium, tmp_path)


def uploads(bench: Bench) -> int:
    """Imports that came with a body, however they ended; the empty first request of the challenge is none."""
    return len([seen for seen in bench.vault.requests if seen.method == "PUT" and seen.body])


def imported(bench: Bench) -> Callable[[], str]:
    return lambda: bench.imported("web")


# ---- challenges ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resource", [
    "https://graph.microsoft.com", "https://vault.azure.net", "https://127.0.0.1", "https://evil.example:8443", "", "x",
])  # fmt: skip
def test_BY_04_a_challenge_for_another_resource_is_refused_and_no_token_is_sent(bench: Bench, resource: str) -> None:
    bench.vault.resource = resource
    for _ in range(2):  # nor is it kept
        refused(bench.port.offer, reason="TARGET_CHALLENGE_REFUSED")
    assert (bench.vault.login.accepted, bench.vault.login.refused) == (0, 0)
    bench.vault.resource = bench.vault.url
    assert bench.port.offer().key.id == bench.kek


def test_BY_04_a_later_challenge_for_another_resource_is_refused_too(bench: Bench) -> None:
    bench.port.offer()
    shown = bench.vault.login.accepted
    bench.vault.resource = "https://graph.microsoft.com"
    bench.vault.faults.add(unauthorized())
    refused(bench.port.offer, reason="TARGET_CHALLENGE_REFUSED")
    assert bench.vault.login.accepted == shown + 1  # the request that was challenged, and none after it


def test_a_token_that_is_not_accepted_any_more_is_read_again(bench: Bench) -> None:
    bench.port.offer()
    bench.vault.token = "renewed"
    assert "tenant" in refused(bench.port.offer, reason="TARGET_DENIED").message
    bench.vault.token_file.write_text("renewed")
    assert bench.port.offer().key.id == bench.kek
    bench.vault.faults.add(insufficient_claims())
    assert bench.port.offer().key.id == bench.kek
    bench.vault.token_file.chmod(0o644)
    refused(bench.port.offer, reason="TARGET_CREDENTIAL_UNUSABLE")


def test_the_token_is_for_each_file_that_is_named(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / bench.vault.host
    folder.mkdir()
    (folder / "vault.token").touch(mode=0o600)
    (folder / "vault.token").write_text(bench.vault.token)
    bench.vault.token_file.unlink()
    assert target_of(bench.vault, bench.kek, tmp_path, file="vault.token").offer().key.id == bench.kek


# ---- uploads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("effect", [Effect.LOSE_ANSWER, Effect.CUT])
def test_BY_15_an_upload_whose_answer_is_lost_is_not_repeated(bench: Bench, effect: Effect) -> None:
    bench.vault.faults.add(effect, on="^PUT ")
    refused(imported(bench), reason="TARGET_UNREACHABLE")
    assert uploads(bench) == 1
    assert len(bench.port.versions("web")) == (1 if effect is Effect.LOSE_ANSWER else 0)


@pytest.mark.parametrize("answer", [
    unavailable(), Refused(500, "InternalError", ""), Refused(504, "GatewayTimeout", ""), Refused(408, "Timeout", ""),
    throttled(None), throttled(60), Refused(503, "ServiceUnavailable", "", headers={"Retry-After": "1"}),
], ids=lambda one: f"{one.status}-{one.headers.get('Retry-After', '')}")  # fmt: skip
def test_BY_15_an_upload_that_may_have_arrived_is_sent_once(bench: Bench, answer: Refused) -> None:
    bench.vault.faults.add(answer, on="^PUT ", times=9)
    with pytest.raises(Unavailable):
        bench.imported("web")
    assert uploads(bench) == 1


def test_an_upload_that_a_busy_vault_put_off_is_sent_again_after_the_wait_and_a_look(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    # Patched: the SDK waits there, and a whole second at least.
    monkeypatch.setattr("azure.core.pipeline.transport.RequestsTransport.sleep", lambda _self, wait: waits.append(wait))
    bench.vault.faults.add(throttled(3), on="^PUT ")
    bench.imported("web")
    assert (uploads(bench), waits) == (2, [3])
    assert len(bench.vault.versions("web")) == 1
    seen = [one.method for one in bench.vault.requests if one.path.startswith("/keys/web") and one.status != 401]
    assert seen[:4] == ["GET", "PUT", "GET", "PUT"]


def test_BY_15_a_further_version_that_was_put_off_goes_again_only_if_there_is_what_was_shown_before(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Patched: the SDK waits there, and a whole second at least.
    monkeypatch.setattr("azure.core.pipeline.transport.RequestsTransport.sleep", lambda _self, _wait: None)
    bench.imported("web")
    further = replace(cargo("web", first=False), held=tuple(bench.port.versions("web")))
    bench.vault.faults.add(throttled(1), on="^PUT ")
    bench.port.import_key(further, bench.blob(), SHA1)
    assert len(bench.vault.versions("web")) == 2
    bench.vault.faults.add(throttled(1), on="^PUT ")
    refused(lambda: bench.port.import_key(further, bench.blob(), SHA1), reason="TARGET_THROTTLED")
    assert len(bench.vault.versions("web")) == 2


def test_BY_15_an_upload_that_was_put_off_and_yet_arrived_is_not_sent_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def arrives_after_all(_transport: object, _wait: float) -> None:
        target_of(bench.vault, bench.kek, bench.folder).import_key(cargo("web"), bench.blob(), SHA1)

    # Patched: the SDK waits there, and a whole second at least.
    monkeypatch.setattr("azure.core.pipeline.transport.RequestsTransport.sleep", arrives_after_all)
    bench.vault.faults.add(throttled(1), on="^PUT ")
    refused(imported(bench), reason="TARGET_THROTTLED")
    assert len(bench.vault.versions("web")) == 1


def test_a_long_wait_is_told_and_not_waited_for(bench: Bench) -> None:
    bench.vault.faults.add(throttled(60), times=9)
    error = refused(bench.port.offer, reason="TARGET_THROTTLED")
    assert error.metadata == {"retry_after_seconds": "60"}
    assert isinstance(error, Unavailable)


def test_what_changes_nothing_is_tried_again_a_little(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # Patched: the SDK waits there, and a whole second at least.
    monkeypatch.setattr("azure.core.pipeline.transport.RequestsTransport.sleep", lambda _self, _wait: None)
    version = bench.imported("web")
    for fault in (unavailable(), throttled(1), Effect.CUT):
        bench.vault.faults.add(fault, on="^GET ")
        assert bench.port.offer().key.id == bench.kek
    for fault in (unavailable(), throttled(1)):
        bench.vault.faults.add(fault, on="/sign")
        bench.port.sign("web", version, SignatureAlgorithm.ES256, b"m")
    bench.vault.faults.add(unavailable(), times=99)
    refused(bench.port.offer, reason="TARGET_UNREACHABLE")


@pytest.mark.parametrize(("answer", "reason"), [
    (forbidden("ForbiddenByFirewall"), "TARGET_FIREWALL"),
    (conflict("ObjectIsDeletedButRecoverable"), "TARGET_NAME_DELETED"),
    (conflict("ObjectIsBeingDeleted"), "TARGET_CONFLICT"),
    (conflict(), "TARGET_CONFLICT"),
    (Refused(307, "Moved", "", headers={"Location": "https://127.0.0.1:1/"}), "TARGET_UNREACHABLE"),
], ids=lambda one: str(getattr(one, "inner", one)))  # fmt: skip
def test_each_refusal_of_an_upload_has_its_reason(bench: Bench, answer: Refused, reason: str) -> None:
    bench.vault.faults.add(answer, on="^PUT ")
    refused(imported(bench), reason=reason)
    assert uploads(bench) == 1
    assert bench.vault.versions("web") == []


# ---- other servers -------------------------------------------------------------------------------------------------


def moved(page: Any, to: FakeVault) -> Any:
    """A page whose next one is said to be elsewhere."""
    return {**page, "nextLink": page["nextLink"].replace(page["nextLink"].partition("/keys")[0], to.url)}


def test_BY_03_a_vault_that_points_to_another_server_is_not_followed(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    with FakeVault(folder) as other:
        bench.fill(27)
        bench.vault.told = lambda _, answer: replace(answer, body=moved(answer.body, other))
        refused(bench.port.keks.names, reason="TARGET_REFUSED")
        assert other.requests == []


def test_BY_01_a_lookalike_with_another_certificate_is_sent_nothing(bench: Bench, tmp_path: Path) -> None:
    foreign, _ = self_signed(tmp_path / "foreign")
    bench.vault.ca_file.write_bytes(foreign.read_bytes())
    refused(target_of(bench.vault, bench.kek, tmp_path).offer, reason="TARGET_TLS_UNTRUSTED")
    assert bench.vault.requests == []
    bench.vault.ca_file.write_text("no certificate")
    with pytest.raises(BrokerError):
        target_of(bench.vault, bench.kek, tmp_path).offer()


def test_proxies_and_azures_own_variables_change_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "REQUESTS_CA_BUNDLE", "AZURE_AUTHORITY_HOST"):
        monkeypatch.setenv(name, "https://127.0.0.1:1")
    monkeypatch.setenv("AZURE_LOG_LEVEL", "DEBUG")
    assert bench.port.offer().key.id == bench.kek


def test_silence_is_given_up_in_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # Patched, as the next: the real times are tens of seconds, which nobody configures.
    monkeypatch.setattr(https, "READ_SECONDS", 0.3)
    # As above.
    monkeypatch.setattr(https, "TOTAL_SECONDS", 1.0)
    bench.vault.faults.add(Effect.HANG, times=99)
    assert "in time" in refused(bench.port.offer, reason="TARGET_UNREACHABLE").message
    refused(imported(bench), reason="TARGET_UNREACHABLE")


def test_a_vault_that_is_away_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "away"
    folder.mkdir()
    with FakeVault(folder) as away:
        port = target_of(away, away.add_kek(), tmp_path)
        port.offer()
    refused(port.offer, reason="TARGET_UNREACHABLE")


@pytest.mark.parametrize("answer", [
    b"[]", b'{"key": 1}', b'{"key": {"kid": "x", "kty": "RSA-HSM", "n": "!", "e": "!"}}', b"<html>", b"",
    b'{"value": [{"kid": "https://x/keys/web/latest"}]}', b"[" * 200_000, b'{"key": {"kty": "RSA-HSM"}}',
])  # fmt: skip
def test_answers_that_are_none_are_told(bench: Bench, answer: bytes) -> None:
    bench.port.offer()
    bench.vault.told = lambda _, right: replace(right, body=answer)
    for act in (bench.port.offer, lambda: bench.port.sign("web", "0" * 32, SignatureAlgorithm.ES256, b"m")):
        with pytest.raises(BrokerError) as caught:
            act()
        assert caught.value.reason in {"TARGET_REFUSED", "TARGET_UNREACHABLE", "REMOTE_KEY_MISSING", "KEK_UNSUITABLE"}


# ---- what is kept --------------------------------------------------------------------------------------------------


def test_no_token_and_no_blob_shows_in_logs_representations_or_refusals(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    bench.imported("web")
    bench.vault.faults.add(forbidden(message=bench.vault.token))
    error = refused(bench.port.offer, reason="TARGET_DENIED")
    connection = bench.port._connection  # noqa: SLF001 - what its representation shows, whoever logs it, is the question
    assert isinstance(connection, Connection)
    shown = [error.message, str(error.metadata), repr(bench.port), repr(connection), caplog.text]
    assert not [text for text in shown if bench.vault.token in text]
    assert not [record for record in caplog.records if record.name.startswith(("azure", "msal"))]


def test_many_threads_share_one_target(bench: Bench) -> None:
    version = bench.imported("web")
    faults: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                bench.port.sign("web", version, SignatureAlgorithm.ES256, b"m")
                assert bench.port.offer().key.id == kek_of(bench.vault)
        except BaseException as error:  # noqa: BLE001 - told below
            faults.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
