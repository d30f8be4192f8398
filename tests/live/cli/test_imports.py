"""`broker key import|export|confirm` and `broker target add azure-key-vault`: what they send, write, wait for."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import grpc
import pytest
from broker_api.v1 import drift_pb2 as drift
from broker_api.v1 import imports_pb2 as imports

from tests.live.cli.test_standin import Broker, StandIn, bare, broker, running, stand_in

__all__ = ["bare", "broker", "running", "stand_in"]  # fixtures

GUID = "11111111-2222-3333-4444-555555555555"
AZURE = [
    "target", "add", "azure-key-vault", "hsm", "--vault-url", "https://pay.managedhsm.azure.net",
    "--credential", "workload-identity", "--tenant-id", GUID, "--client-id", GUID,
]  # fmt: skip
KID = "https://pay.managedhsm.azure.net/keys/kek/" + "0" * 32
AWAY = grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the command wanted to sleep, each time; it does not."""
    seconds: list[float] = []
    # Patched: commands take no clock, and the waits add up to minutes.
    monkeypatch.setattr("broker_cli.wire.time.sleep", seconds.append)
    return seconds


def throttled(seconds: int) -> tuple[Any, ...]:
    return AWAY, "TARGET_THROTTLED", "The vault limits the rate.", {"retry_after_seconds": str(seconds)}


# ---- targets -----------------------------------------------------------------------------------------------------


def test_an_azure_target_is_sent_as_it_was_described(broker: Broker, stand_in: StandIn) -> None:
    assert broker(*AZURE, "--kek", KID, "--file", "federated").code == 0
    sent = stand_in.asked("CreateTarget")
    assert sent.WhichOneof("settings") == "azure_key_vault"
    vault = sent.azure_key_vault
    assert (vault.vault_url, vault.kek, vault.credential) == (AZURE[5], KID, "workload-identity")
    assert (vault.tenant_id, vault.client_id, vault.file, sent.create_kek) == (GUID, GUID, "federated", False)


def test_a_kek_is_made_by_its_name_and_registered_by_its_id(broker: Broker, stand_in: StandIn) -> None:
    assert broker(*AZURE, "--kek", "kek", "--create-kek").code == 0
    assert stand_in.asked("CreateTarget").create_kek
    for wrong in (["--kek", KID, "--create-kek"], ["--kek", "kek"], ["--kek", KID, "--file", "/etc/shadow"]):
        assert broker(*AZURE, *wrong).code == 2


def test_another_kek_is_chosen_when_repinning(broker: Broker, stand_in: StandIn) -> None:
    assert broker("target", "repin", "hsm", "--thumbprint", "ab", "--kek", KID).code == 0
    assert stand_in.asked("RepinTarget").kek == KID


# ---- terms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "rpc"), [("import", "ImportKey"), ("confirm", "ConfirmImport")])
def test_terms_are_sent_as_they_were_given(broker: Broker, stand_in: StandIn, command: str, rpc: str) -> None:
    line = ["key", command, "pay", "--target", "hsm"]
    assert broker(*line).code == 0
    assert not stand_in.asked(rpc).HasField("terms")
    given = ["--operation", "sign", "--operation", "verify", "--tag", "team=pay", "--disabled"]
    times = ["--not-before", "2027-01-31T12:00:00Z", "--expires", "2028-01-31T13:00:00+01:00"]
    assert broker(*line, *given, *times).code == 0
    terms = stand_in.asked(rpc).terms
    assert (list(terms.operations), dict(terms.tags)) == (["sign", "verify"], {"team": "pay"})
    assert (terms.HasField("enabled"), terms.enabled) == (True, False)
    assert (terms.not_before.ToJsonString(), terms.expire_time.ToJsonString()) == (
        "2027-01-31T12:00:00Z", "2028-01-31T12:00:00Z",
    )  # fmt: skip
    for wrong in (["--tag", "team"], ["--expires", "soon"]):
        assert broker(*line, *wrong).code == 2


def test_a_second_copy_is_told(broker: Broker, stand_in: StandIn) -> None:
    before = stand_in.answers["ImportKey"]

    def answer(request: Any) -> Any:
        done = before(request)
        done.extra_versions.add(remote_version="aa", disabled=True)
        done.extra_versions.add(remote_version="bb")
        return done

    stand_in.answers["ImportKey"] = answer
    ended = broker("key", "import", "pay", "--target", "hsm", "--format", "json")
    assert "version aa was disabled" in ended.err
    assert "version bb could NOT be disabled" in ended.err
    assert [one["remote_version"] for one in json.loads(ended.out)["extra_versions"]] == ["aa", "bb"]


# ---- export ------------------------------------------------------------------------------------------------------


def test_an_export_is_a_new_private_file(broker: Broker, stand_in: StandIn, tmp_path: Path) -> None:
    file, kek = tmp_path / "pay.byok", tmp_path / "kek.pem"
    kek.write_text("-----BEGIN PUBLIC KEY-----\n")
    line = ["key", "export", "pay", "--target", "hsm", "--out", file]
    ended = broker(*line, "--kek-file", kek, "--format", "json")
    assert (ended.code, file.read_bytes()) == (0, b"{}")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stand_in.asked("ExportKey").kek_pem == "-----BEGIN PUBLIC KEY-----\n"
    assert (json.loads(ended.out)["blob_sha256"], json.loads(ended.out)["file"]) == ("ab", str(file))
    assert "broker key confirm pay --target hsm" in ended.err
    asked = len(stand_in.seen)
    assert broker(*line).code == 7
    assert (len(stand_in.seen), file.read_bytes()) == (asked, b"{}")


def test_an_export_goes_to_no_terminal_and_a_dry_run_writes_nothing(
    broker: Broker, stand_in: StandIn, tmp_path: Path
) -> None:
    assert broker("key", "export", "pay", "--target", "hsm").code == 2
    assert broker("key", "export", "pay", "--target", "hsm", "--out", "/dev/stdout").code == 7
    assert stand_in.seen == []
    file = tmp_path / "pay.byok"
    assert broker("key", "export", "pay", "--target", "hsm", "--out", file, "--dry-run").code == 0
    assert not file.exists()


# ---- patience ----------------------------------------------------------------------------------------------------


def test_a_throttled_vault_is_waited_for_visibly_under_the_same_id(
    broker: Broker, stand_in: StandIn, waited: list[float]
) -> None:
    stand_in.failures["ImportKey"] = [throttled(12), throttled(3)]
    ended = broker("key", "import", "pay", "--target", "hsm")
    assert (ended.code, waited) == (0, [12, 3])
    assert "The vault asks to wait 12 s" in ended.err
    assert len({request.request_id for _, request in stand_in.seen}) == 1
    assert len(stand_in.seen) == 3


def test_nobody_waits_who_does_not_want_to(broker: Broker, stand_in: StandIn, waited: list[float]) -> None:
    stand_in.failures["ImportKey"] = [throttled(12)]
    ended = broker("key", "import", "pay", "--target", "hsm", "--no-wait")
    assert (ended.code, waited, len(stand_in.seen)) == (5, [], 1)
    assert "TARGET_THROTTLED" in ended.err


@pytest.mark.parametrize("seconds", [181, 99_999])
def test_patience_has_an_end(broker: Broker, stand_in: StandIn, waited: list[float], seconds: int) -> None:
    stand_in.failures["ImportKey"] = [throttled(seconds)]
    assert broker("key", "import", "pay", "--target", "hsm").code == 5
    assert waited == []


def test_an_upload_under_way_is_waited_for_too(broker: Broker, stand_in: StandIn, waited: list[float]) -> None:
    stand_in.failures["ConfirmImport"] = [
        (AWAY, "IMPORT_IN_PROGRESS", "It is in progress.", {"retry_after_seconds": "60"})
    ]
    ended = broker("key", "confirm", "pay", "--target", "hsm")
    assert (ended.code, waited) == (0, [60])
    assert "It is in progress. Waiting 60 s" in ended.err


@pytest.mark.parametrize("text", ["", "soon", "-1", "9" * 50])
def test_nonsense_is_not_waited_for(broker: Broker, stand_in: StandIn, waited: list[float], text: str) -> None:
    fault = (AWAY, "TARGET_THROTTLED", "Wait.", {"retry_after_seconds": text})
    stand_in.failures["ImportKey"] = [fault] * 9
    assert broker("key", "import", "pay", "--target", "hsm").code == 5
    assert waited == [0, 0, 0]  # the usual short pauses of a broker that is away


@pytest.mark.parametrize("words", [
    ("key", "import", "pay", "--target", "hsm", "--expires", ""),
    ("key", "confirm", "pay", "--target", "hsm", "--not-before", ""),
    ("key", "import", "pay", "--target", "hsm", "--expires", "9999-12-31T23:59:59-14:00"),
    ("key", "import", "pay", "--target", "hsm", "--not-before", "0001-01-01T00:00:00+14:00"),
    ("secret", "put", "team/app", "--expires", ""),
    (*AZURE, "--kek", KID, "--thumbprint", ""),
])  # fmt: skip
def test_a_condition_that_is_empty_or_no_time_is_not_left_out(
    broker: Broker, stand_in: StandIn, words: tuple[str, ...]
) -> None:
    before = len(stand_in.seen)
    assert broker(*words).code == 2
    assert len(stand_in.seen) == before


# ---- copies ------------------------------------------------------------------------------------------------------


STATES = ("PROVEN", "PENDING", "FAILED", "FAILED", "GONE", "HELD", "DISABLING", "UNKNOWN")


def copies(request: Any) -> Any:
    """One import in each state; of the failed ones the second was never sent."""
    rows = [imports.Import(key=request.name or "pay", version=1, target="t", remote_name=f"n{at}") for at in range(8)]
    for row, state in zip(rows, STATES, strict=True):
        row.state = imports.ImportState.Value(f"IMPORT_STATE_{state}")
    rows[0].remote_version, rows[3].never_sent = "c0ffee", True
    rows[0].prove_time.FromJsonString("2026-05-04T10:42:00Z")
    rows[2].failure = "REMOTE_KEY_MISSING"
    return imports.ListImportsResponse(imports=rows)


@pytest.mark.parametrize(("line", "rpc"), [
    ("key disable pay", "DisableKey"), ("key destroy pay --yes --here-only", "ScheduleKeyDestruction"),
    ("key destroy pay --dry-run --here-only", "ScheduleKeyDestruction"),
])  # fmt: skip
def test_K06_who_disables_or_destroys_a_key_is_told_where_its_copies_stay_or_may_come_back(
    broker: Broker, stand_in: StandIn, line: str, rpc: str
) -> None:
    stand_in.answers["ListImports"] = copies
    ended = broker(*line.split())
    assert [name for name, _ in stand_in.seen] == ["ListImports", rpc]
    told = (
        "Version 1 was proven at the target t as n0, version c0ffee (2026-05-04T10:42:00Z): that copy stays as it is."
    )
    assert told in ended.err
    assert [at for at in range(8) if f"n{at}" in ended.err] == [0, 1, 2, 5, 6, 7]
    assert "can be recovered" in next(line for line in ended.err.splitlines() if "n2" in line)
    assert "Disable or delete these copies where they are" in ended.err


def test_K06_who_destroys_a_key_everywhere_is_told_which_copies_go_and_which_nobody_reaches(
    broker: Broker, stand_in: StandIn
) -> None:
    stand_in.answers["ListImports"] = copies
    ended = broker("key", "destroy", "pay", "--yes")
    asked = dict(stand_in.seen)["ScheduleKeyDestruction"]
    assert asked.everywhere
    told = {at: line for line in ended.err.splitlines() for at in range(8) if f"n{at}" in line}
    assert told.keys() == {0, 1, 2, 5, 6, 7}
    assert all(("deleted in the end" in line) is (at != 7) for at, line in told.items())
    assert "the broker does not" not in ended.err


def placed(request: Any) -> Any:
    """A copy in force, one that is missing, one that was withdrawn, and one that its target cannot disable."""
    rows = [
        imports.Import(key="pay", version=at + 1, target="t", remote_name="pay", state=imports.IMPORT_STATE_PROVEN)
        for at in range(4)
    ]
    for row, word in zip(rows, ("CURRENT", "MISSING", "DISABLED", "STILL_ENABLED"), strict=True):
        row.standing = imports.CopyStanding.Value(f"COPY_STANDING_{word}")
    rows[0].drifts.append(drift.DRIFT_DISABLED)
    del request
    return imports.ListImportsResponse(imports=rows)


def test_K07_where_asks_each_target_when_it_is_told_to_and_ends_so_that_scripts_see_it(
    broker: Broker, stand_in: StandIn
) -> None:
    stand_in.answers["ListImports"] = placed
    stand_in.failures["ProveImport"] = [(grpc.StatusCode.FAILED_PRECONDITION, "REMOTE_KEY_DISABLED", "It is disabled.")]
    ended = broker("key", "where", "pay", "--prove")
    assert [asked.version for name, asked in stand_in.seen if name == "ProveImport"] == [1, 2, 4]
    assert ended.code == 10
    assert "Version 1 of pay at t as pay: REMOTE_KEY_DISABLED. It is disabled." in ended.err
    assert "Version 4 of pay as pay at t was put out of use, and the target cannot do that" in ended.err
    assert [word in ended.out for word in ("current", "missing", "disabled", "still-enabled")] == [True] * 4
    assert broker("key", "where", "pay", "--prove").code == 0


def test_drift_shows_each_finding_with_its_repair_and_goes_on_where_a_place_is_away(
    broker: Broker, stand_in: StandIn
) -> None:
    def look(request: Any) -> Any:
        found = drift.DriftFinding(
            drift=drift.DRIFT_DELETED, key="pay", version=1, remote_name="pay", repair="broker key import pay"
        )
        return drift.CheckDriftResponse(report=drift.DriftReport(target=request.target, findings=[found]))

    stand_in.answers["CheckDrift"] = look
    ended = broker("drift", "--format", "json")
    assert ended.code == 10
    assert [(one["place"], one["drift"], one["repair"]) for one in json.loads(ended.out)] == [
        ("HSM", "deleted", "broker key import pay"), ("prod", "deleted", "broker key import pay"),
    ]  # fmt: skip
    stand_in.answers["CheckDrift"] = lambda request: drift.CheckDriftResponse(
        report=drift.DriftReport(target=request.target)
    )
    stand_in.failures["CheckDrift"] = [(grpc.StatusCode.FAILED_PRECONDITION, "TARGET_DENIED", "No.")]
    ended = broker("drift")
    assert (ended.code, "HSM could not be looked at: TARGET_DENIED. No." in ended.err) == (5, True)


def test_K07_where_is_the_brokers_record_and_says_so(broker: Broker, stand_in: StandIn) -> None:
    stand_in.answers["ListImports"] = copies
    ended = broker("key", "where", "pay")
    assert "2026-05-04T10:42:00Z" in ended.out
    assert '"--prove" asks the targets now' in ended.err
    stand_in.answers["ListImports"] = lambda _: imports.ListImportsResponse()
    assert broker("key", "where", "pay").err == ""


def test_K06_one_of_several_copies_is_proven_by_its_name(broker: Broker, stand_in: StandIn) -> None:
    broker("key", "prove", "key/pay", "--target", "target/prod", "--remote-name", "second", "--version", "v2")
    ((rpc, asked),) = stand_in.seen
    assert (rpc, asked.name, asked.target, asked.remote_name, asked.version) == (
        "ProveImport", "pay", "prod", "second", 2,
    )  # fmt: skip


def test_a_key_is_disabled_also_by_somebody_who_may_not_list_its_copies(broker: Broker, stand_in: StandIn) -> None:
    stand_in.failures["ListImports"] = [(grpc.StatusCode.PERMISSION_DENIED, "POLICY_DENIED", "Not permitted.")]
    ended = broker("key", "disable", "pay")
    assert (ended.code, stand_in.seen[-1][0]) == (0, "DisableKey")
    assert "could not be found out (POLICY_DENIED)" in ended.err


def test_a_key_without_copies_is_disabled_without_a_word_of_any(broker: Broker, stand_in: StandIn) -> None:
    stand_in.answers["ListImports"] = lambda _: imports.ListImportsResponse()
    assert "copies" not in broker("key", "disable", "pay").err
