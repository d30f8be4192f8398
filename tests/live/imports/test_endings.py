"""Copies at the real places: found when somebody has changed them there, and gone when their key is destroyed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.keyvault.keys import KeyClient

from broker.core.kinds import Drift, ImportState, KeyState, KeyType
from broker.core.model import Key, Operation
from broker.targets.vault.policy import policy
from tests.live.imports.bench import Bench, Mount
from tests.live.targets.azure_bench import AzureBench, bench, vault
from tests.servers.azure_key_vault import FakeVault, forbidden
from tests.servers.fake_azure import key_client
from tests.servers.openbao import OpenBao
from tests.servers.softhsm import KeysHsm

__all__ = ["bench", "vault"]  # fixtures

DISABLED, FAILED, GONE = ImportState.DISABLED, ImportState.FAILED, ImportState.GONE


@pytest.fixture
def bao(openbao: OpenBao, hsm: KeysHsm, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(Mount(openbao, tmp_path, openbao.mount), hsm, tmp_path)
    made.register()
    yield made
    made.close()


@pytest.fixture
def there(vault: FakeVault) -> KeyClient:
    """The vault's owner."""
    return key_client(vault)


def twice(made: Any, key_type: KeyType = KeyType.EC_P256) -> Key:
    """A key with two versions at the target."""
    key: Key = made.key(key_type)
    made.run(key)
    key = made.rotate(key)
    made.run(key)
    return key


def destroy(made: Any, key: Key) -> None:
    made.rotations.destroy(made.asked("KeyService/ScheduleKeyDestruction"), key.name, timedelta(days=1))
    days(made, 1)


def days(made: Any, count: int) -> None:
    for _ in range(3 * count + 3):
        made.clock.forward(hours=8)
        made.do_chores(made.keys)


def states(made: Any, key: Key) -> list[ImportState]:
    return [row.state for row in made.rows(key)]


def found(made: Any) -> list[tuple[Drift, int]]:
    report = made.drifts.check(made.asked("DriftService/CheckDrift"), "bao")
    return [(one.finding.drift, one.finding.version) for one in report.findings]


def failure(made: Any, key: Key) -> str:
    live: Operation | None = made.store.last(Operation, f"key/{key.name}/0/gone/bao/{key.name}")
    assert live is not None
    return live.failure


# ---- OpenBao -----------------------------------------------------------------------------------------------------


def test_at_openbao_a_destroyed_key_is_gone_with_all_its_versions(bao: Bench) -> None:
    bao.mount.give(policy(bao.mount.path, deletes=True))
    key = twice(bao)
    destroy(bao, key)
    assert (bao.store.get(Key, key.name).state, states(bao, key)) == (KeyState.DESTROYED, [GONE, GONE])  # type: ignore[union-attr]
    assert not bao.arrived(key)


def test_at_openbao_without_the_right_to_delete_the_copy_stays_disabled_and_the_refusal_says_what_is_missing(
    bao: Bench,
) -> None:
    key = bao.key()
    bao.run(key)
    destroy(bao, key)
    assert (failure(bao, key), states(bao, key)) == ("TARGET_CANNOT_DELETE", [DISABLED])
    assert bao.mount.key(key.name)["soft_deleted"] is True
    bao.mount.give(policy(bao.mount.path, deletes=True))
    days(bao, 1)
    assert states(bao, key) == [GONE]


def test_FT_31_at_openbao_a_symmetric_key_is_gone_though_it_could_not_be_asked_about_while_the_hsm_had_the_key(
    bao: Bench,
) -> None:
    key = bao.key(KeyType.AES_256)
    bao.run(key)
    bao.mount.give(policy("elsewhere"))
    destroy(bao, key)
    assert bao.store.get(Key, key.name).state is KeyState.DESTROYED  # type: ignore[union-attr]
    assert bao.mount.key(key.name).get("soft_deleted", False) is False
    bao.mount.give(policy(bao.mount.path, deletes=True))
    days(bao, 1)
    assert states(bao, key) == [GONE]
    assert not bao.arrived(key)


def test_at_openbao_the_newest_of_two_versions_is_disabled_once_the_former_one_is(bao: Bench) -> None:
    key = twice(bao)
    port = bao.connect("bao", bao.kind, bao.settings)
    assert port.hidden(key.name) == []
    port.disable(key.name, "1")
    assert port.hidden(key.name) == ["1"]
    port.disable(key.name, "2")
    assert bao.mount.key(key.name)["soft_deleted"] is True
    port.enable(key.name, "2")
    assert [one.version for one in port.versions(key.name) if one.enabled] == ["2"], "the hidden one stays hidden"


def test_at_openbao_what_is_hidden_and_not_the_brokers_keeps_the_key_until_its_owner_has_trimmed_it(bao: Bench) -> None:
    bao.mount.give(policy(bao.mount.path, deletes=True))
    key = twice(bao)
    path = f"{bao.mount.path}/keys/{key.name}"
    bao.mount.server.request("POST", f"{path}/config", {"min_decryption_version": 2, "min_encryption_version": 2})
    first = bao.rows(key)[0]
    with bao.store.write(bao.call("ProveImport").outcome()) as write:
        write.replace(first, replace(first, state=GONE))  # as if it were somebody else's
    destroy(bao, key)
    assert failure(bao, key) == "REMOTE_KEY_SHARED"
    bao.mount.server.request("POST", f"{path}/trim", {"min_available_version": 2})
    days(bao, 1)
    assert states(bao, key) == [GONE, GONE]
    assert not bao.arrived(key)


def test_at_openbao_what_was_changed_there_is_found(bao: Bench) -> None:
    server, key = bao.mount.server, bao.key()
    bao.run(key)
    before = found(bao)
    path = f"{bao.mount.path}/keys/{key.name}"
    server.request("DELETE", f"{path}/soft-delete")
    assert [one for one in found(bao) if one not in before] == [(Drift.DISABLED, 1)]
    server.request("POST", f"{path}/soft-delete-restore", {})
    server.request("POST", f"{path}/config", {"exportable": True, "deletion_allowed": True})
    assert [one for one in found(bao) if one not in before] == [(Drift.EXPORTABLE, 1)]
    server.request("DELETE", path)
    assert [one for one in found(bao) if one not in before] == [(Drift.DELETED, 1)]
    server.request("POST", path, {"type": "ecdsa-p256"})
    assert [one for one in found(bao) if one not in before] == [(Drift.REPLACED, 1)]


# ---- Azure -------------------------------------------------------------------------------------------------------


def test_in_azure_a_destroyed_key_is_deleted_and_purged(bench: AzureBench) -> None:
    key = twice(bench, KeyType.EC_P384)
    destroy(bench, key)
    assert states(bench, key) == [GONE, GONE]
    assert not bench.arrived(key)


def test_in_azure_what_may_not_be_purged_stays_on_record_until_it_is(bench: AzureBench, there: KeyClient) -> None:
    key = bench.key(KeyType.EC_P384)
    bench.run(key)
    bench.vault.faults.add(forbidden("purge"), on=f"DELETE /deletedkeys/{key.name}")
    destroy(bench, key)
    assert states(bench, key) == [FAILED], "it can be recovered there"
    there.purge_deleted_key(key.name)
    days(bench, 2)
    assert states(bench, key) == [GONE]


def test_in_azure_without_the_right_to_delete_the_copy_stays_disabled(bench: AzureBench) -> None:
    key = bench.key(KeyType.EC_P384)
    bench.run(key)
    bench.vault.faults.add(forbidden("delete"), on=f"DELETE /keys/{key.name}", times=1000)
    destroy(bench, key)
    assert (failure(bench, key), states(bench, key)) == ("TARGET_CANNOT_DELETE", [DISABLED])


def test_in_azure_what_was_changed_there_is_found(bench: AzureBench, there: KeyClient) -> None:
    key = bench.key(KeyType.EC_P384)
    bench.run(key)
    assert found(bench) == []
    there.update_key_properties(key.name, enabled=False)
    assert found(bench) == [(Drift.DISABLED, 1)]
    there.update_key_properties(key.name, enabled=True)
    there.create_rsa_key(key.name, size=2048, hardware_protected=True, key_operations=["import"])
    assert found(bench) == [(Drift.EXTRA_VERSION, 0)]
    there.begin_delete_key(key.name).wait()
    assert found(bench) == [(Drift.DELETED, 1)]
    kek = bench.settings["kek"].split("/")[-2]
    there.update_key_properties(kek, enabled=False)
    assert found(bench)[0] == (Drift.KEK_CHANGED, 0)
