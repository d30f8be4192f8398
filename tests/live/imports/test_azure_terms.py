"""Keys that were limited at their target on purpose: proven again, followed by a new version, cut short while set."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from azure.keyvault.keys import JsonWebKey

from broker.core.errors import Unavailable, WrongState
from broker.core.imports.importing import Imports
from broker.core.imports.rules import TERMS_UNSETTLED
from broker.core.kinds import ImportState, KeyType
from broker.core.model import Import, Key, Target, Terms
from broker.targets import connector
from broker.targets.azure_key_vault.kek import KEK_BITS
from tests.fakes.refusals import refused
from tests.live.targets.azure_bench import AzureBench
from tests.servers.azure import put_kek, surroundings_of, ticking
from tests.servers.azure_key_vault import Effect, FakeVault
from tests.servers.azure_key_vault.material import another
from tests.servers.fake_azure import key_client
from tests.servers.shim import HsmElsewhere

DISABLED, ONLY_VERIFY, ONLY_ENCRYPT = (
    Terms(enabled=False),
    Terms(operations=("verify",)),
    Terms(operations=("encrypt",)),
)


@pytest.fixture
def bench(exact_hsm: HsmElsewhere, tmp_path: Path) -> Iterator[AzureBench]:
    with FakeVault(tmp_path, kind="managed-hsm", now=ticking()) as vault:
        put_kek(vault)
        made = AzureBench(vault, exact_hsm, tmp_path)
        made.register()
        yield made
        made.close()


def prove(bench: AzureBench, key: Key) -> Import:
    return bench.imports.prove(bench.call("ProveImport"), key.name, 0, "bao").row


def usable(bench: AzureBench, key: Key) -> list[str]:
    return [one.version for one in bench.held(key) if one.enabled]


class Killed(BaseException):
    """What a test ends an import with, as a crash would: nobody catches it, nothing is cleaned up."""


def killed_after(bench: AzureBench, step: str) -> Imports:
    """Imports of a broker that dies when the target has done this."""

    class Deadly:
        def __init__(self, port: object) -> None:
            self._port = port

        def __getattr__(self, name: str) -> object:
            real = getattr(self._port, name)
            if name == "terms":
                return Deadly(real)
            if name != step:
                return real

            def die(*given: object, **named: object) -> None:
                real(*given, **named)
                raise Killed

            return die

    port = bench.connect("bao", bench.kind, bench.settings)
    return bench.imports_with(lambda _name, _kind, _settings: Deadly(port))


# ---- proven again ------------------------------------------------------------------------------------------------


def test_a_key_that_was_left_disabled_on_purpose_is_not_held_against_its_import(bench: AzureBench) -> None:
    key = bench.key()
    proven = bench.bring(key, DISABLED).row
    error = refused(lambda: prove(bench, key), WrongState, "REMOTE_KEY_DISABLED")
    assert "enable it there first" in error.message
    assert bench.row(key) == proven
    assert usable(bench, key) == []
    bench.bring(key, Terms(tags={"now": "in-use"}))
    assert prove(bench, key).state is ImportState.PROVEN


@pytest.mark.parametrize("limit", ["verify", "not yet"])
def test_a_key_that_may_not_sign_there_is_refused_a_proof_and_nothing_is_changed(bench: AzureBench, limit: str) -> None:
    key = bench.key()
    later = Terms(not_before=datetime.now(UTC) + timedelta(days=9))
    proven = bench.bring(key, ONLY_VERIFY if limit == "verify" else later).row
    reason = "TARGET_OPERATION_FORBIDDEN" if limit == "verify" else "TARGET_KEY_DISABLED"
    error = refused(lambda: prove(bench, key), WrongState, reason)
    assert "az keyvault key set-attributes" in error.message
    assert (bench.row(key), len(usable(bench, key))) == (proven, 1)


def test_BY_07_another_key_in_its_place_is_noticed_also_when_it_is_disabled(bench: AzureBench) -> None:
    key = bench.key()
    bench.bring(key, DISABLED)
    (held,) = bench.held(key)
    held.material = another(held.material)
    bench.import_by(connector(surroundings_of(bench.vault, bench.journal.parent)))
    refused(lambda: prove(bench, key), WrongState, "PROOF_FAILED")
    row = bench.row(key)
    assert row is not None
    assert (row.state, row.failure) == (ImportState.FAILED, "PROOF_FAILED")


# ---- cut short ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key_type", "terms"), [
    (KeyType.EC_P256, DISABLED), (KeyType.EC_P256, ONLY_VERIFY), (KeyType.AES_256, DISABLED),
    (KeyType.AES_256, ONLY_ENCRYPT), (KeyType.EC_P256, Terms(operations=("verify",), enabled=False)),
])  # fmt: skip
def test_killed_when_its_terms_were_set_the_import_is_proven_by_what_was_written_before(
    bench: AzureBench, key_type: KeyType, terms: Terms
) -> None:
    key = bench.key(key_type)
    with pytest.raises(Killed):
        killed_after(bench, "apply").import_key(bench.call("ImportKey"), key.name, 0, "bao", "", terms)
    row = bench.row(key)
    assert row is not None
    assert (row.state, row.failure) == (ImportState.PENDING, TERMS_UNSETTLED)
    done = bench.bring(key, terms)
    (held,) = bench.held(key)
    assert (done.row.state, done.row.failure, done.row.remote_version) == (ImportState.PROVEN, "", held.version)
    assert held.enabled is terms.enabled
    assert held.key_ops == list(terms.operations or held.key_ops)
    assert bench.uploads(key) == 1


def test_an_answer_about_terms_that_is_lost_leaves_it_pending_until_they_are_set_again(bench: AzureBench) -> None:
    key = bench.key()
    bench.vault.faults.add(Effect.LOSE_ANSWER, on=f"^PATCH /keys/{key.name}", times=9)
    refused(lambda: bench.bring(key, ONLY_VERIFY), Unavailable, "TARGET_UNREACHABLE")
    bench.vault.faults.clear()
    assert bench.bring(key, ONLY_VERIFY).row.state is ImportState.PROVEN
    assert [one.key_ops for one in bench.held(key)] == [["verify"]]


@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.AES_256])
def test_killed_between_putting_it_out_of_use_and_writing_that_down_it_is_still_known(
    bench: AzureBench, key_type: KeyType
) -> None:
    key = bench.key(key_type)
    bench.vault.denied.add("encrypt" if key_type.symmetric else "sign")
    with pytest.raises(Killed):
        killed_after(bench, "disable").import_key(bench.call("ImportKey"), key.name, 0, "bao", "")
    assert usable(bench, key) == []
    row = bench.row(key)
    assert row is not None
    assert (row.state, row.failure) == (ImportState.DISABLING, "TARGET_DENIED")
    bench.vault.denied.clear()
    for step in ("enable", "decrypt" if key_type.symmetric else "sign"):  # and killed twice more on the way back
        with pytest.raises(Killed):
            killed_after(bench, step).import_key(bench.call("ImportKey"), key.name, 0, "bao", "")
    done = bench.run(key)
    assert (done.state, usable(bench, key)) == (ImportState.PROVEN, [done.remote_version])
    assert bench.uploads(key) == 1


# ---- followed by a new version -----------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [DISABLED, ONLY_VERIFY])
def test_a_new_version_follows_one_that_is_out_of_use(bench: AzureBench, terms: Terms) -> None:
    key = bench.key()
    bench.bring(key, terms)
    second = bench.run(bench.rotate(key))
    assert second.state is ImportState.PROVEN
    assert [one.version for one in bench.held(key)][-1] == second.remote_version


def test_a_symmetric_key_that_is_out_of_use_cannot_be_told_from_somebody_elses(bench: AzureBench) -> None:
    key = bench.key(KeyType.AES_256)
    bench.bring(key, DISABLED)
    refused(lambda: bench.run(bench.rotate(key)), WrongState, "REMOTE_KEY_DISABLED")
    row = bench.row(key, 2)
    assert row is not None
    assert (row.state, len(bench.held(key))) == (ImportState.FAILED, 1)


def test_BY_13_an_older_version_never_becomes_the_current_one_again(bench: AzureBench) -> None:
    key = bench.key()
    bench.run(bench.rotate(key))
    for again in (
        lambda: bench.run(key, 1),
        lambda: bench.imports.import_key(bench.call("ImportKey", validate_only=True), key.name, 1, "bao", ""),
        lambda: bench.handover.export(bench.call("ExportKey"), key.name, 1, "bao", ""),
    ):
        error = refused(again, WrongState, "NEWER_VERSION_THERE")
        assert "would become the current one" in error.message
    assert (bench.row(key, 1), len(bench.held(key))) == (None, 1)


def test_BY_13_the_older_version_stays_usable_for_those_who_have_not_moved(bench: AzureBench) -> None:
    key = bench.key()
    first = bench.run(key)
    second = bench.run(bench.rotate(key))
    assert usable(bench, key) == [first.remote_version, second.remote_version]
    for number in (1, 2):
        row = bench.imports.prove(bench.call("ProveImport"), key.name, number, "bao").row
        assert row.state is ImportState.PROVEN


def test_BY_13_an_older_version_that_arrived_in_time_is_settled_all_the_same(bench: AzureBench) -> None:
    key = bench.key()
    file = bench.export(key).transfer_file
    with key_client(bench.vault) as client:
        client.import_key(
            key.name, JsonWebKey(kty="EC-HSM", crv="P-256", key_ops=["sign", "verify"], t=file), hardware_protected=True
        )
    late, rotated = bench.key(), bench.rotate(key)
    assert bench.run(key, 1).state is ImportState.PROVEN
    assert bench.run(rotated).state is ImportState.PROVEN
    bench.export(late)
    bench.run(bench.rotate(late))
    refused(lambda: bench.run(late, 1), WrongState, "NEWER_VERSION_THERE")
    row = bench.row(late, 1)
    assert row is not None
    assert (row.state, row.failure) == (ImportState.FAILED, "NEWER_VERSION_THERE")


# ---- a KEK whose making was cut short ----------------------------------------------------------------------------


def test_a_kek_that_was_made_unheard_is_registered_by_the_same_request(bench: AzureBench) -> None:
    settings = {**bench.settings, "kek": "made"}

    def create() -> object:
        call = bench.call("CreateTarget", request_id="6f1c1b1e-8f65-4c6e-9a52-0d5c0f2e7a11")
        return bench.targets.create(call, "second", bench.kind, settings, "", create_kek=True)

    bench.vault.stock(KEK_BITS)
    bench.vault.faults.add(Effect.LOSE_ANSWER, on="^POST /keys/made/create")
    refused(create, Unavailable, "TARGET_UNREACHABLE")
    (kek,) = bench.vault.versions("made")
    named = f"{bench.vault.url}/keys/made/{kek.version}"
    create()
    registered = bench.store.get(Target, "second")
    assert registered is not None
    assert registered.kek_id == named
    assert len(bench.vault.versions("made")) == 1
