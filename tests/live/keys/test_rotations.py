"""Keys rotated everywhere by a running broker: SoftHSM, OpenBao, the command line's own RPCs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.servers.live import Client, Live, live_in, within
from tests.servers.openbao import OpenBao

EC_P256, SIGN, SECONDS = 4, 1, 60
ACTIVE, DEACTIVATED, COMPROMISED = 2, 4, 5
PROVEN, DISABLED = 2, 8
CURRENT, DRIFT_DISABLED = 1, 2


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, openbao: OpenBao) -> Iterator[Live]:
    with live_in(tmp_path_factory.mktemp("live"), openbao) as broker:
        yield broker


@pytest.fixture(scope="module")
def admin(broker: Live) -> Client:
    return broker.client()


def made(admin: Client, name: str) -> None:
    admin.ask("CreateKey", name=name, type=EC_P256, usage=SIGN, exportable=True)
    admin.ask("ImportKey", name=name, target="bao")


def phases(admin: Client, name: str) -> list[int]:
    return [one.phase for one in admin.ask("ListKeyVersions", name=name).versions]


def copies(admin: Client, name: str) -> dict[int, int]:
    return {one.version: one.state for one in admin.ask("ListImports", name=name).imports}


def over(admin: Client, name: str) -> Any:
    return admin.ask("WaitOperation", name=name).operation.done


def there(openbao: OpenBao, name: str) -> list[str]:
    answer = openbao.request("GET", f"{openbao.mount}/keys/{name}")
    assert answer is not None
    return sorted(answer["data"]["keys"])


def test_a_key_is_rotated_in_the_hsm_and_at_the_target_while_it_signs(admin: Client, openbao: OpenBao) -> None:
    made(admin, "pay")
    begun = admin.ask("RotateKey", name="pay", everywhere=True, grace={"seconds": 1})
    assert [one.target for one in begun.places] == ["bao"]
    used = set[int]()

    def rotated() -> bool:
        message = {"message": b"pay 10 to bob"}
        signed = admin.ask("Sign", name="pay", input=message)
        used.add(signed.version)
        assert admin.ask("Verify", name="pay", version=signed.version, input=message, signature=signed.signature).valid
        return bool(admin.ask("GetOperation", name=begun.operation.name).operation.done)

    within(SECONDS, rotated)
    rotated()
    assert used == {1, 2}
    over = ([DEACTIVATED, ACTIVE], {1: DISABLED, 2: PROVEN})  # after its grace
    within(SECONDS, lambda: (phases(admin, "pay"), copies(admin, "pay")) == over)
    assert there(openbao, "pay") == ["2"]
    moves = [(one.version, one.phase, one.reason) for one in admin.ask("ListKeyMoves", name="pay").moves]
    assert moves == [(1, ACTIVE, "created"), (1, DEACTIVATED, "rotated"), (2, 1, "created"), (2, ACTIVE, "rotated")]


def test_a_compromised_version_is_out_of_use_here_at_once_and_there_soon(admin: Client, openbao: OpenBao) -> None:
    made(admin, "leaked")
    done = admin.ask("CompromiseKeyVersion", name="leaked", reason="Found in a paste.")
    assert admin.refusal("Sign", name="leaked", input={"message": b"m"}).reason == "KEY_VERSION_PHASE"
    within(SECONDS, lambda: over(admin, done.operation.name))
    assert (phases(admin, "leaked"), copies(admin, "leaked")) == ([COMPROMISED], {1: DISABLED})
    answer = openbao.request("GET", f"{openbao.mount}/keys/leaked")
    assert answer is not None
    assert answer["data"]["soft_deleted"]


def test_a_rotation_that_waits_can_be_given_up(admin: Client, broker: Live, openbao: OpenBao) -> None:
    made(admin, "stuck")
    openbao.write_token(broker.folder / "credentials", token="none")
    try:
        begun = admin.ask("RotateKey", name="stuck", everywhere=True)
        within(SECONDS, lambda: bool(admin.ask("ListOperations", subject="key/stuck/2", live=True).operations))
        assert admin.ask("AbortOperation", name=begun.operation.name).operation.state == 2
        within(SECONDS, lambda: over(admin, begun.operation.name))
    finally:
        openbao.write_token(broker.folder / "credentials")
    assert admin.ask("GetOperation", name=begun.operation.name).operation.failure == "GIVEN_UP"
    assert phases(admin, "stuck") == [ACTIVE, DEACTIVATED]
    assert admin.ask("Sign", name="stuck", input={"message": b"m"}).version == 1


def test_the_replacement_of_a_compromised_version_is_in_force_there_too(admin: Client, openbao: OpenBao) -> None:
    made(admin, "swapped")
    done = admin.ask("CompromiseKeyVersion", name="swapped", reason="Found in a paste.", replace=True)
    assert done.no_replacement == ""
    within(SECONDS, lambda: over(admin, done.replacement.name))
    within(SECONDS, lambda: copies(admin, "swapped") == {1: DISABLED, 2: PROVEN})
    assert (phases(admin, "swapped"), copies(admin, "swapped")) == ([COMPROMISED, ACTIVE], {1: DISABLED, 2: PROVEN})
    within(SECONDS, lambda: there(openbao, "swapped") == ["2"])
    assert admin.ask("Sign", name="swapped", input={"message": b"m"}).version == 2


def test_a_destroyed_key_is_disabled_there_at_once_and_what_people_do_there_is_found(
    admin: Client, openbao: OpenBao
) -> None:
    made(admin, "doomed")
    before = len(admin.ask("CheckDrift", target="bao").report.findings)
    openbao.request("DELETE", f"{openbao.mount}/keys/doomed/soft-delete")
    found = [one for one in admin.ask("CheckDrift", target="bao").report.findings if one.key == "doomed"]
    assert [(one.drift, one.version) for one in found] == [(DRIFT_DISABLED, 1)]
    assert "key prove doomed --version 1 --target bao" in found[0].repair
    (shown,) = admin.ask("ListImports", name="doomed").imports
    assert (shown.standing, list(shown.drifts)) == (CURRENT, [DRIFT_DISABLED])
    openbao.request("POST", f"{openbao.mount}/keys/doomed/soft-delete-restore", {})
    assert len(admin.ask("CheckDrift", target="bao").report.findings) == before
    assert admin.ask("CheckDrift").report.findings == []
    done = admin.ask("ScheduleKeyDestruction", name="doomed", everywhere=True)
    assert done.key.destroyed_at_targets
    within(SECONDS, lambda: copies(admin, "doomed") == {1: DISABLED})
    waits = admin.ask("ListOperations", subject="key/doomed/0/gone", live=True).operations
    assert [one.name for one in waits] == ["key/doomed/0/gone/bao/doomed/1"]
    assert admin.ask("CancelKeyDestruction", name="doomed").key.destroyed_at_targets is False
