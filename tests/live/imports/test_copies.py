"""Several copies of one version at one target: each stays on record until the target has nothing of it any more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from azure.keyvault.keys import KeyClient

from broker.core.errors import PermissionDenied
from broker.core.imports import rules as import_rules
from broker.core.kinds import ImportState, KeyState, KeyType, Sent
from broker.core.model import Import, Key, Terms
from broker.core.policy.guard import Guard
from tests.fakes.calls import document
from tests.fakes.refusals import refused
from tests.live.imports.bench import Bench, Mount
from tests.live.targets.azure_bench import AzureBench, bench, vault
from tests.servers.azure_key_vault import Effect, FakeVault, forbidden
from tests.servers.fake_azure import key_client
from tests.servers.openbao import OpenBao
from tests.servers.softhsm import KeysHsm

PROVEN, FAILED, GONE, UNKNOWN = ImportState.PROVEN, ImportState.FAILED, ImportState.GONE, ImportState.UNKNOWN


__all__ = ["bench", "vault"]  # fixtures


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


def deleted(there: KeyClient, name: str) -> None:
    there.begin_delete_key(name).wait()


def recovered(there: KeyClient, name: str) -> None:
    there.begin_recover_deleted_key(name).wait()


def proven(bench: AzureBench | Bench, key: Key, remote_name: str = "") -> Import:
    return bench.imports.prove(bench.call("ProveImport"), key.name, 0, "bao", remote_name).row


def states(bench: AzureBench | Bench, key: Key) -> dict[str, ImportState]:
    return {one.remote_name: one.state for one in bench.rows(key)}


# ---- K06 ---------------------------------------------------------------------------------------------------------


def test_K06_a_copy_that_was_deleted_softly_stays_on_record_beside_the_next_one(
    bench: AzureBench, there: KeyClient
) -> None:
    key = bench.key()
    bench.bring(key)
    deleted(there, key.name)
    error = refused(lambda: proven(bench, key), reason="REMOTE_KEY_MISSING")
    assert "az keyvault key recover --hsm-name" in error.message
    assert states(bench, key) == {key.name: FAILED}
    bench.bring(key, remote_name="second")
    assert states(bench, key) == {key.name: FAILED, "second": PROVEN}
    assert all(one.may_be_there for one in bench.rows(key))
    recovered(there, key.name)
    assert proven(bench, key, key.name).state is PROVEN
    assert states(bench, key) == {key.name: PROVEN, "second": PROVEN}
    assert bench.bring(key).row.remote_name == "second"  # the one that was begun last
    deleted(there, "second")
    there.purge_deleted_key("second")
    assert "could come back" in refused(lambda: proven(bench, key, "second"), reason="REMOTE_KEY_MISSING").message
    assert states(bench, key) == {key.name: PROVEN, "second": GONE}
    assert proven(bench, key).remote_name == key.name


def test_K06_who_may_not_look_at_deleted_keys_is_told_no_copy_is_gone(
    bench: AzureBench, there: KeyClient, vault: FakeVault
) -> None:
    key = bench.key()
    bench.bring(key)
    deleted(there, key.name)
    there.purge_deleted_key(key.name)
    vault.faults.add(forbidden("get"), on=f"GET /deletedkeys/{key.name}")
    assert "show-deleted" in refused(lambda: proven(bench, key), reason="REMOTE_KEY_MISSING").message
    assert states(bench, key) == {key.name: FAILED}
    refused(lambda: proven(bench, key), reason="REMOTE_KEY_MISSING")
    assert states(bench, key) == {key.name: GONE}


def test_K06_a_deleted_copy_blocks_the_removal_of_its_target_until_it_is_purged(
    bench: AzureBench, there: KeyClient
) -> None:
    key = bench.key()
    bench.bring(key)
    deleted(there, key.name)
    refused(lambda: proven(bench, key), reason="REMOTE_KEY_MISSING")
    error = refused(lambda: bench.targets.delete(bench.call("DeleteTarget"), "bao"), reason="TARGET_IN_USE")
    assert key.name in error.message
    there.purge_deleted_key(key.name)
    refused(lambda: proven(bench, key), reason="REMOTE_KEY_MISSING")
    bench.targets.delete(bench.call("DeleteTarget"), "bao")
    assert states(bench, key) == {key.name: GONE}


def test_K06_of_a_removed_target_every_copy_that_may_be_there_is_unknown(bench: AzureBench, there: KeyClient) -> None:
    key = bench.key()
    bench.bring(key)
    deleted(there, key.name)
    refused(lambda: proven(bench, key), reason="REMOTE_KEY_MISSING")
    bench.bring(key, remote_name="second")
    bench.targets.delete(bench.call("DeleteTarget"), "bao", copies_unknown=True)
    assert states(bench, key) == {key.name: UNKNOWN, "second": UNKNOWN}


def test_K06_what_was_never_sent_is_nowhere_and_what_was_sent_once_stays_so(bench: AzureBench) -> None:
    key = bench.key(KeyType.EC_P256)
    bench.vault.faults.add(forbidden("import"), on="PUT /keys/")
    refused(lambda: bench.bring(key), reason="TARGET_DENIED")
    (row,) = bench.rows(key)
    assert (row.state, row.sent, row.may_be_there) == (FAILED, Sent.UPLOAD, True)  # it left, and nobody took it
    refused(lambda: proven(bench, key), reason="REMOTE_KEY_MISSING")
    assert states(bench, key) == {key.name: GONE}


def test_K06_an_exported_file_can_still_be_carried_there(bench: AzureBench) -> None:
    key = bench.key()
    made = bench.export(key)
    assert made.row.blob_sha256 == made.blob_sha256
    refused(lambda: bench.confirm(key), reason="REMOTE_KEY_MISSING")
    assert "file" in refused(lambda: proven(bench, key), reason="REMOTE_KEY_MISSING").message
    (row,) = bench.rows(key)
    assert (row.state, row.sent, row.may_be_there) == (FAILED, Sent.FILE, True)


def test_K06_at_openbao_deleted_is_gone_and_what_only_hides_is_not(bao: Bench) -> None:
    key = bao.key()
    bao.run(key)
    bao.run(bao.rotate(key))
    path = f"{bao.mount.path}/keys/{key.name}"
    bao.mount.server.request("POST", f"{path}/config", {"min_decryption_version": 2, "deletion_allowed": True})

    def prove_first() -> Import:
        return bao.imports.prove(bao.call("ProveImport"), key.name, 1, "bao").row

    assert "min_decryption_version" in refused(prove_first, reason="REMOTE_KEY_MISSING").message
    assert [one.state for one in bao.rows(key)] == [FAILED, PROVEN]
    bao.mount.server.request("POST", f"{path}/config", {"min_decryption_version": 1})
    prove_first()
    assert [one.state for one in bao.rows(key)] == [PROVEN, PROVEN]
    bao.mount.server.request("DELETE", path)
    refused(prove_first, reason="REMOTE_KEY_MISSING")
    assert [one.state for one in bao.rows(key)] == [GONE, PROVEN]


def test_K06_a_copy_of_a_symmetric_key_that_is_disabled_here_can_be_found_gone(bao: Bench) -> None:
    key = bao.key(KeyType.AES_256)
    bao.run(key)
    path = f"{bao.mount.path}/keys/{key.name}"
    bao.change(key, replace(key, state=KeyState.DISABLED))
    refused(lambda: proven(bao, key), reason="KEY_STATE")
    with bao.store.write(bao.call("Test").outcome()) as write:
        (row,) = bao.rows(key)
        write.replace(row, replace(row, state=FAILED, failure="REMOTE_KEY_MISSING"))
    refused(
        lambda: proven(bao, key), reason="KEY_STATE"
    )  # a disabled key is not used to find out whether it is that one
    bao.mount.server.request("POST", f"{path}/config", {"deletion_allowed": True})
    bao.mount.server.request("DELETE", path)
    refused(lambda: proven(bao, key), reason="REMOTE_KEY_MISSING")
    assert states(bao, key) == {key.name: GONE}


# ---- K07 ---------------------------------------------------------------------------------------------------------


def test_K07_a_copy_that_is_gone_is_imported_again(bao: Bench) -> None:
    key = bao.key()
    first = bao.run(key)
    path = f"{bao.mount.path}/keys/{key.name}"
    bao.mount.server.request("POST", f"{path}/config", {"deletion_allowed": True})
    bao.mount.server.request("DELETE", path)
    bao.clock.forward(hours=1)
    again = bao.run(key)
    assert (again.state, again.blob_sha256 != first.blob_sha256) == (PROVEN, True)
    assert bao.mount.versions(key.name) == ["1"]


def test_K07_a_copy_that_is_deleted_softly_is_refused_with_what_can_be_done(
    bench: AzureBench, there: KeyClient
) -> None:
    key = bench.key()
    bench.bring(key)
    deleted(there, key.name)
    error = refused(lambda: bench.bring(key), reason="TARGET_NAME_DELETED")
    assert "recover" in error.message
    assert states(bench, key) == {key.name: FAILED}
    recovered(there, key.name)
    assert bench.bring(key).row.state is PROVEN


def test_K07_a_copy_that_was_disabled_there_is_not_called_proven(bench: AzureBench, there: KeyClient) -> None:
    key = bench.key()
    done = bench.bring(key).row
    there.update_key_properties(key.name, done.remote_version, enabled=False)
    refused(lambda: bench.bring(key), reason="REMOTE_KEY_DISABLED")
    (row,) = bench.rows(key)
    assert (row.state, row.proven_at) == (PROVEN, done.proven_at)


@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.AES_256])
def test_K07_another_key_in_its_place_is_found_and_left_alone(bao: Bench, key_type: KeyType) -> None:
    key, other = bao.key(key_type), bao.key(key_type)
    bao.run(key)
    path = f"{bao.mount.path}/keys/{key.name}"
    bao.mount.server.request("POST", f"{path}/config", {"deletion_allowed": True})
    bao.mount.server.request("DELETE", path)
    bao.run(other, remote_name=key.name)
    refused(lambda: bao.run(key), reason="PROOF_FAILED")
    assert states(bao, key) == {key.name: FAILED}
    refused(lambda: bao.run(key), reason="TARGET_NAME_TAKEN")
    assert bao.run(other).state is PROVEN  # nobody has disabled it


def test_K07_terms_that_limit_it_can_be_repeated(bench: AzureBench) -> None:
    key, terms = bench.key(), Terms(enabled=False)
    done = bench.bring(key, terms).row
    bench.clock.forward(hours=1)
    assert bench.bring(key, terms).row.proven_at == done.proven_at  # of that time, and it says so
    again = bench.bring(key, Terms(tags={"team": "a"})).row  # enables it
    assert again.proven_at == bench.clock()


def test_K07_a_dry_run_asks_and_writes_nothing(bench: AzureBench, there: KeyClient) -> None:
    key = bench.key()
    before = bench.bring(key).row

    def dry() -> Import:
        return bench.imports.import_key(bench.call("ImportKey", validate_only=True), key.name, 0, "bao", "").row

    assert dry() == before
    deleted(there, key.name)
    would = dry()
    assert (would.state, bench.rows(key)) == (ImportState.PENDING, [before])


def test_K07_a_target_that_does_not_answer_is_not_answered_for(bench: AzureBench, vault: FakeVault) -> None:
    key = bench.key()
    bench.bring(key)
    vault.faults.add(Effect.CUT, times=9)
    refused(lambda: bench.bring(key), reason="TARGET_UNREACHABLE")
    assert states(bench, key) == {key.name: PROVEN}


# ---- K15 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["PaymentsKey", "6e49-a", "-", "A--b-", "a" * 127])
def test_K15_a_name_that_azure_takes_is_taken(bench: AzureBench, name: str) -> None:
    key = bench.key()
    assert bench.bring(key, remote_name=name).row.remote_name == name
    assert bench.vault.versions(name)


@pytest.mark.parametrize("name", ["pay_key.v2", "a.b", "a" * 128, "a/b", "a b", "ä"])
def test_K15_a_name_that_azure_does_not_take_is_refused(bench: AzureBench, name: str) -> None:
    refused(lambda: bench.bring(bench.key(), remote_name=name), reason="NAME_INVALID")


def test_K15_names_that_differ_by_case_are_one_at_azure(bench: AzureBench) -> None:
    key, other = bench.key(), bench.key()
    bench.bring(key, remote_name="PaymentsKey")
    assert bench.bring(key, remote_name="paymentskey").row.remote_name == "PaymentsKey"
    assert len(bench.rows(key)) == 1
    refused(lambda: bench.bring(other, remote_name="PAYMENTSKEY"), reason="TARGET_NAME_TAKEN")


@pytest.mark.parametrize("name", ["PaymentsKey", "6e49-a", "pay_key.v2", "_", "7", "a..b", "a-.-b"])
def test_K15_a_name_that_transit_takes_is_taken(bao: Bench, name: str) -> None:
    wanted = f"{name}{bao.key().name.replace('-', '_')}"
    assert bao.run(bao.key(), remote_name=wanted).remote_name == wanted
    assert bao.mount.versions(wanted) == ["1"]


@pytest.mark.parametrize("name", ["-a", "a-", ".a", "a.", "a/b", "a b", "a%2fb", "..", "a" * 256, "ä"])
def test_K15_a_name_that_transit_does_not_take_is_refused(bao: Bench, name: str) -> None:
    refused(lambda: bao.run(bao.key(), remote_name=name), reason="NAME_INVALID")


def test_K15_a_policy_is_asked_about_the_one_spelling_that_azure_compares(bench: AzureBench) -> None:
    text = """
        @id("all") permit (principal, action, resource);
        @id("not-theirs") forbid (principal, action == Action::"ImportKey", resource is Target)
        when { context.remote_name like "team-a-*" };
    """
    bench.restart(guard=Guard(document(text)))
    key = bench.key()
    for name in ("team-a-key", "Team-A-Key", "TEAM-A-KEY"):
        with pytest.raises(PermissionDenied):
            bench.bring(key, remote_name=name)
    assert bench.bring(key, remote_name="Team-B-Key").row.state is PROVEN


def test_K15_who_may_not_is_not_told_what_is_wrong_with_a_name(bench: AzureBench) -> None:
    bench.restart(guard=Guard(document('@id("none") forbid (principal, action, resource);')))
    with pytest.raises(PermissionDenied):
        bench.bring(bench.key(), remote_name="pay_key.v2")


def test_K06_no_more_copies_that_may_be_there_are_on_record_than_is_the_limit(
    bench: AzureBench, there: KeyClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Patched: a thousand uploads would have to be made.
    monkeypatch.setattr(import_rules, "MAX_COPIES", 2)
    key = bench.key()
    for name in ("a1", "a2"):
        bench.bring(key, remote_name=name)
        deleted(there, name)
        refused(partial(proven, bench, key, name), reason="REMOTE_KEY_MISSING")
    assert "broker key where" in refused(lambda: bench.bring(key, remote_name="a3"), reason="IMPORT_QUOTA").message
    there.purge_deleted_key("a1")
    refused(partial(proven, bench, key, "a1"), reason="REMOTE_KEY_MISSING")
    assert bench.bring(key, remote_name="a3").row.state is PROVEN
    assert states(bench, key) == {"a1": GONE, "a2": FAILED, "a3": PROVEN}
