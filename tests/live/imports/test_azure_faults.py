"""Imports to a Key Vault that throttles, loses answers, keeps another key, says no, or is asked by many at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from azure.keyvault.keys import JsonWebKey

from broker.core.errors import Unavailable, WrongState
from broker.core.kinds import ImportState, KeyType
from broker.targets import connector
from tests.fakes.refusals import refused
from tests.live.targets.azure_bench import AzureBench, bench, vault
from tests.servers import azure
from tests.servers.azure_key_vault import Effect, Refused, conflict, forbidden, throttled, unavailable
from tests.servers.fake_azure import key_client

EXACT_TYPES = [KeyType.EC_P256, KeyType.AES_256]


__all__ = ["bench", "vault"]  # fixtures


def usable(bench: AzureBench, key: object) -> list[str]:
    return [one.version for one in bench.held(key) if one.enabled]  # type: ignore[arg-type]


def restarted(bench: AzureBench) -> AzureBench:
    """The same store and HSM under a broker that remembers nothing of the vault."""
    bench.connect = connector(azure.surroundings_of(bench.vault, bench.journal.parent))
    bench.import_by(bench.connect)
    return bench


# ---- once, whatever happens --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key_type", EXACT_TYPES)
def test_BY_06_the_same_import_twelve_times_at_once_makes_one_remote_version(
    bench: AzureBench, key_type: KeyType
) -> None:
    key = bench.key(key_type)
    with ThreadPoolExecutor(12) as pool:
        done = list(pool.map(lambda _: bench.run(key), range(12)))
    assert {row.state for row in done} == {ImportState.PROVEN}
    assert usable(bench, key) == [done[0].remote_version]
    assert bench.uploads(key) == 1


def test_BY_06_two_broker_processes_make_one_remote_version(bench: AzureBench) -> None:
    # A second noun has locks of its own, as another process has: only the rows stand between them.
    key = bench.key()
    nouns = [bench.imports_with(bench.connect) for _ in range(4)]

    def run(noun: object) -> str:
        try:
            return str(noun.import_key(bench.call("ImportKey"), key.name, 0, "bao", "").row.state)  # type: ignore[attr-defined]
        except Unavailable as error:
            return error.reason

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(run, nouns)) <= {"proven", "IMPORT_IN_PROGRESS"}
    assert bench.run(key).state is ImportState.PROVEN
    assert len(usable(bench, key)) == 1


@pytest.mark.parametrize("key_type", EXACT_TYPES)
def test_BY_15_an_answer_lost_after_the_upload_is_settled_by_reading_back(bench: AzureBench, key_type: KeyType) -> None:
    key = bench.key(key_type)
    bench.vault.faults.add(Effect.LOSE_ANSWER, on=f"^PUT /keys/{key.name}")
    assert bench.run(key).state is ImportState.PROVEN
    assert (len(usable(bench, key)), bench.uploads(key)) == (1, 1)


@pytest.mark.parametrize("key_type", EXACT_TYPES)
def test_BY_15_silence_from_the_upload_on_is_settled_by_the_next_call(bench: AzureBench, key_type: KeyType) -> None:
    key = bench.key(key_type)
    port, faults = bench.connect("bao", bench.kind, bench.settings), bench.vault.faults

    class Silent:
        """The vault takes the upload, and from then on nothing is heard of it."""

        def __getattr__(self, name: str) -> object:
            return getattr(port, name)

        def import_key(self, *given: object, **named: object) -> None:
            faults.add(Effect.LOSE_ANSWER, on=f"^PUT /keys/{key.name}")
            try:
                port.import_key(*given, **named)  # type: ignore[arg-type]
            finally:
                faults.add(unavailable(), on="^GET", times=99)

    bench.import_by(lambda _name, _kind, _settings: Silent())
    refused(lambda: bench.run(key), Unavailable, "TARGET_UNREACHABLE")
    row = bench.row(key)
    assert row is not None
    assert row.state is ImportState.PENDING
    faults.clear()
    assert restarted(bench).run(key).state is ImportState.PROVEN
    assert (len(usable(bench, key)), bench.uploads(key)) == (1, 1)


def test_BY_06_a_service_that_made_two_versions_is_left_with_one(bench: AzureBench) -> None:
    key = bench.key()
    file = bench.export(key).transfer_file
    for _ in range(2):
        _upload(bench, key.name, file)
    done = restarted(bench).bring(key)
    assert usable(bench, key) == [done.row.remote_version]
    assert [one.disabled for one in done.extra] == [True]


# ---- throttling --------------------------------------------------------------------------------------------------


def test_a_throttled_upload_says_when_and_may_be_sent_again_at_once(bench: AzureBench) -> None:
    key, number = bench.key(), "6f1c1b1e-8f65-4c6e-9a52-0d5c0f2e7a11"
    bench.vault.faults.add(throttled(12), on=f"^PUT /keys/{key.name}")
    error = refused(lambda: bench.run(key, request_id=number), Unavailable, "TARGET_THROTTLED")
    assert error.metadata["retry_after_seconds"] == "12"
    row = bench.row(key)
    assert row is not None
    assert (row.state, row.failure) == (ImportState.PENDING, "TARGET_THROTTLED")
    done = bench.run(key, request_id=number)
    assert (done.state, done.failure) == (ImportState.PROVEN, "")
    assert len(usable(bench, key)) == 1


def test_BY_15_throttled_at_the_upload_and_at_the_look_back_still_makes_one_version(bench: AzureBench) -> None:
    key = bench.key()
    bench.run(key)
    rotated = bench.rotate(key)
    bench.vault.faults.add(throttled(12), on=f"^PUT /keys/{key.name}")
    refused(lambda: bench.run(rotated), Unavailable, "TARGET_THROTTLED")
    bench.vault.faults.add(throttled(12), on=f"^GET /keys/{key.name}")
    refused(lambda: bench.run(rotated), Unavailable, "TARGET_THROTTLED")
    assert bench.run(rotated).state is ImportState.PROVEN
    assert len(usable(bench, key)) == 2


def test_another_writer_is_waited_for(bench: AzureBench) -> None:
    key = bench.key()
    bench.vault.faults.add(conflict(), on=f"^PUT /keys/{key.name}")
    refused(lambda: bench.run(key), Unavailable, "TARGET_CONFLICT")
    assert bench.run(key).state is ImportState.PROVEN
    assert len(usable(bench, key)) == 1


# ---- the vault says no -------------------------------------------------------------------------------------------


def test_a_name_that_is_deleted_and_not_gone_is_told_with_the_commands_that_help(bench: AzureBench) -> None:
    key = bench.key()
    bench.run(key, remote_name="old")
    with key_client(bench.vault) as client:
        client.begin_delete_key("old").result()
    other = bench.key()
    error = refused(lambda: bench.run(other, remote_name="old"), WrongState, "TARGET_NAME_DELETED")
    for help_ in ("az keyvault key recover", "az keyvault key purge"):
        assert help_ in error.message
    row = bench.row(other)
    assert row is not None
    assert (row.state, row.failure) == (ImportState.FAILED, "TARGET_NAME_DELETED")
    assert bench.run(other, remote_name="new").state is ImportState.PROVEN


@pytest.mark.parametrize(
    ("fault", "reason", "told"),
    [
        (forbidden("ForbiddenByRbac"), "TARGET_DENIED", "Managed HSM Crypto User"),
        (forbidden("ForbiddenByFirewall"), "TARGET_FIREWALL", "az keyvault network-rule add"),
    ],
    ids=["rbac", "firewall"],
)
def test_a_refused_upload_has_failed_and_says_what_helps(
    bench: AzureBench, fault: Refused, reason: str, told: str
) -> None:
    key = bench.key()
    bench.vault.faults.add(fault, on=f"^PUT /keys/{key.name}")
    assert told in refused(lambda: bench.run(key), WrongState, reason).message
    row = bench.row(key)
    assert row is not None
    assert (row.state, row.failure) == (ImportState.FAILED, reason)
    assert bench.run(key).state is ImportState.PROVEN


def test_BY_07_a_vault_that_keeps_another_key_is_found_out_and_that_one_disabled(bench: AzureBench) -> None:
    key = bench.key()
    bench.vault.faults.add(Effect.OTHER_KEY, on=f"^PUT /keys/{key.name}")
    refused(lambda: bench.run(key), WrongState, "PROOF_FAILED")
    row = bench.row(key)
    assert row is not None
    assert (row.state, row.failure, usable(bench, key)) == (ImportState.FAILED, "PROOF_FAILED", [])
    refused(lambda: restarted(bench).run(key), WrongState, "TARGET_NAME_TAKEN")
    assert usable(bench, key) == []  # what was once found to be another key is never enabled again
    assert bench.run(key, remote_name="another").state is ImportState.PROVEN


@pytest.mark.sampled(1, each="hidden")
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("key_type", EXACT_TYPES)
def test_what_could_not_be_proven_is_disabled_and_proven_after_a_restart_without_an_upload(
    bench: AzureBench,
    key_type: KeyType,
    hidden: bool,  # noqa: FBT001 - a parameter of the test: whether a disabled version shows its public key
) -> None:
    key = bench.key(key_type)
    right = "encrypt" if key_type.symmetric else "sign"
    bench.vault.denied.add(right)
    refused(lambda: bench.run(key), WrongState, "TARGET_DENIED")
    assert usable(bench, key) == []
    bench.vault.denied.clear()
    if hidden:
        bench.vault.faults.add(forbidden("KeyDisabled"), on=f"^GET /keys/{key.name}(/[0-9a-f]{{32}})?$", times=1)
    done = restarted(bench).run(key)
    assert (done.state, usable(bench, key)) == (ImportState.PROVEN, [done.remote_version])
    assert bench.uploads(key) == 1


def test_a_key_that_was_disabled_there_is_neither_confirmed_nor_imported_over_its_owners_head(
    bench: AzureBench,
) -> None:
    key = bench.key()
    _upload(bench, key.name, bench.export(key).transfer_file)
    with key_client(bench.vault) as client:
        client.update_key_properties(key.name, bench.held(key)[0].version, enabled=False)
    for _ in range(2):
        for again in (bench.confirm, bench.run):
            restarted(bench)
            refused(partial(again, key), WrongState, "REMOTE_KEY_DISABLED")
            assert usable(bench, key) == []
    with key_client(bench.vault) as client:
        client.update_key_properties(key.name, bench.held(key)[0].version, enabled=True)
    assert bench.confirm(key).row.state is ImportState.PROVEN


def _upload(bench: AzureBench, name: str, file: bytes) -> None:
    jwk = JsonWebKey(kty="EC-HSM", crv="P-256", key_ops=["sign", "verify"], t=file)
    with key_client(bench.vault) as client:
        client.import_key(name, jwk, hardware_protected=True)
