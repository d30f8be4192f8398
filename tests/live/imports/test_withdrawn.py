"""BY-05: whatever fails when a key that could not be proven is disabled, a minute after the vault answers it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from azure.keyvault.keys import JsonWebKey

from broker.core.errors import BrokerError, WrongState
from broker.core.kinds import ImportState, KeyType
from broker.core.model import Import, Key, Target
from broker.core.targets.copies import UNPROVEN, alarms
from tests.live.imports.withdrawing import Background
from tests.live.targets.azure_bench import AzureBench, bench, vault
from tests.servers.azure_key_vault import Effect, Refused, forbidden, throttled, unavailable
from tests.servers.fake_azure import key_client

MINUTE = 60.0


__all__ = ["bench", "vault"]  # fixtures


def another_key(bench: AzureBench, key: Key) -> None:
    bench.vault.faults.add(Effect.OTHER_KEY, on=f"^PUT /keys/{key.name}")


def no_right_to_use_it(bench: AzureBench, key: Key) -> None:
    bench.vault.denied.add("encrypt" if key.type.symmetric else "sign")


PROOF_FAILURES = (
    (another_key, KeyType.EC_P256),
    (another_key, KeyType.AES_256),
    (no_right_to_use_it, KeyType.EC_P256),
    (no_right_to_use_it, KeyType.AES_256),
)
FAULTS: tuple[Refused | Effect, ...] = (
    unavailable(), forbidden(), throttled(30), Effect.LOSE_ANSWER, Effect.CUT,
)  # fmt: skip
WHERE = {"disabling": "^PATCH", "all": "^(GET|POST|PATCH) /keys/k-"}


def enabled(bench: AzureBench, key: Key) -> list[str]:
    return [one.version for one in bench.held(key) if one.enabled]


def brought(bench: AzureBench, key: Key) -> BrokerError:
    with pytest.raises(BrokerError) as caught:
        bench.run(key)
    return caught.value


def row_of(bench: AzureBench, key: Key) -> Import:
    found = bench.row(key)
    assert found is not None
    return found


@pytest.mark.sampled(1, each="fault")
@pytest.mark.parametrize("fault", FAULTS, ids=str)
@pytest.mark.parametrize(("failure", "key_type"), PROOF_FAILURES)
def test_BY_05_no_wrong_key_is_enabled_a_minute_after_the_vault_lets_it_be_disabled(
    bench: AzureBench, failure: Callable[[AzureBench, Key], None], key_type: KeyType, fault: Refused | Effect
) -> None:
    key, faults = bench.key(key_type), bench.vault.faults
    failure(bench, key)
    faults.add(fault, on="^PATCH", times=999)
    error = brought(bench, key)
    assert error.reason == "REMOTE_KEY_STILL_ENABLED"
    assert "still enabled at the target" in error.message
    row = row_of(bench, key)
    assert row.state is ImportState.DISABLING
    assert row.failure in {"PROOF_FAILED", "TARGET_DENIED"}
    background = Background(bench)
    assert {each.reason for each in background.run(2)} == {"REMOTE_KEY_STILL_ENABLED"}
    assert alarms(bench.store, "bao") == [row_of(bench, key)]
    faults.clear()
    assert background.run(MINUTE) == []
    assert (enabled(bench, key), row_of(bench, key).state) == ([], ImportState.FAILED)
    assert alarms(bench.store, "") == []


@pytest.mark.sampled(1, each="fault")
@pytest.mark.parametrize("fault", [unavailable(), throttled(30), Effect.CUT], ids=str)
@pytest.mark.parametrize(("failure", "key_type"), PROOF_FAILURES)
def test_BY_05_nor_when_it_went_away_before_the_proof(
    bench: AzureBench, failure: Callable[[AzureBench, Key], None], key_type: KeyType, fault: Refused | Effect
) -> None:
    key, faults = bench.key(key_type), bench.vault.faults
    failure(bench, key)
    given = bench.connect("bao", bench.kind, bench.settings)

    class Away:
        """Takes the upload, says so, and is not heard of again."""

        def __getattr__(self, name: str) -> object:
            return getattr(given, name)

        def import_key(self, *asked: object, **named: object) -> None:
            given.import_key(*asked, **named)  # type: ignore[arg-type]
            faults.add(fault, on="^(GET|POST|PATCH)", times=999)

    bench.import_by(lambda _name, _kind, _settings: Away())
    brought(bench, key)
    assert (row_of(bench, key).state, row_of(bench, key).failure) == (ImportState.PENDING, UNPROVEN)
    background = Background(bench)
    assert background.run(2) != []
    assert enabled(bench, key) != []
    faults.clear()
    assert background.run(MINUTE) == []
    assert (enabled(bench, key), row_of(bench, key).state) == ([], ImportState.FAILED)


@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.AES_256])
def test_BY_05_a_right_key_that_could_not_be_asked_stays_enabled_and_is_proven_by_the_background(
    bench: AzureBench, key_type: KeyType
) -> None:
    key = bench.key(key_type)
    bench.vault.faults.add(unavailable(), on="^POST", times=4)
    assert brought(bench, key).reason == "TARGET_UNREACHABLE"
    assert row_of(bench, key).failure == UNPROVEN
    assert Background(bench).run(MINUTE) == []
    assert (row_of(bench, key).state, row_of(bench, key).failure) == (ImportState.PROVEN, "")
    assert (len(enabled(bench, key)), bench.uploads(key)) == (1, 1)


def test_BY_05_a_hanging_vault_is_asked_again_within_the_minute(bench: AzureBench) -> None:
    key = bench.key()
    another_key(bench, key)
    bench.vault.faults.add(Effect.HANG, on="^PATCH", times=99)
    assert brought(bench, key).reason == "REMOTE_KEY_STILL_ENABLED"
    bench.vault.faults.clear()
    assert Background(bench).run(MINUTE) == []
    assert enabled(bench, key) == []


def test_BY_05_the_pauses_grow_and_stay_within_the_minute(bench: AzureBench) -> None:
    key = bench.key()
    another_key(bench, key)
    bench.vault.faults.add(forbidden(), on="^PATCH", times=999)
    brought(bench, key)
    background = Background(bench)
    attempts = [bool(background.run(2)) for _ in range(60)]
    gaps = "".join("x" if tried else "." for tried in attempts).split("x")
    assert max(map(len, gaps)) == 9  # 20 s
    assert [len(gap) for gap in gaps[1:4]] == [0, 1, 3]
    records = [line for line in bench.journalled().splitlines() if "REMOTE_KEY_STILL_ENABLED" in line]
    assert len(records) == 1  # the journal has the reason once, not each attempt
    bench.vault.faults.clear()


def test_BY_05_a_repeat_disables_first_and_says_so_when_it_cannot(bench: AzureBench) -> None:
    key = bench.key()
    another_key(bench, key)
    bench.vault.faults.add(forbidden(), on="^PATCH", times=2)
    brought(bench, key)
    again = brought(bench, key)
    assert (again.reason, row_of(bench, key).state) == ("REMOTE_KEY_STILL_ENABLED", ImportState.DISABLING)
    assert brought(bench, key).reason == "TARGET_NAME_TAKEN"
    assert enabled(bench, key) == []
    assert bench.run(key, remote_name="another").state is ImportState.PROVEN


def test_BY_05_the_alarm_ends_when_somebody_disables_it_there(bench: AzureBench) -> None:
    key = bench.key()
    another_key(bench, key)
    bench.vault.faults.add(forbidden(), on="^PATCH", times=2)
    brought(bench, key)
    background = Background(bench)
    background.run(2)
    with key_client(bench.vault) as client:
        client.update_key_properties(key.name, bench.held(key)[0].version, enabled=False)
    assert background.run(MINUTE) == []
    assert row_of(bench, key).state is ImportState.FAILED


def test_BY_05_another_keys_version_beside_it_is_left_alone_and_the_alarm_stands(bench: AzureBench) -> None:
    key, others = bench.key(), bench.export(bench.key()).transfer_file
    another_key(bench, key)
    given = bench.connect("bao", bench.kind, bench.settings)

    class Away:
        def __getattr__(self, name: str) -> object:
            return getattr(given, name)

        def import_key(self, *asked: object, **named: object) -> None:
            given.import_key(*asked, **named)  # type: ignore[arg-type]
            bench.vault.faults.add(unavailable(), on="^GET", times=4)

    bench.import_by(lambda _name, _kind, _settings: Away())
    brought(bench, key)
    with key_client(bench.vault) as client:
        jwk = JsonWebKey(kty="EC-HSM", crv="P-256", key_ops=["sign", "verify"], t=others)
        client.import_key(key.name, jwk, hardware_protected=True)
    assert {each.reason for each in Background(bench).run(MINUTE)} == {"IMPORT_UNSETTLED"}
    assert len(enabled(bench, key)) == 2
    assert alarms(bench.store, "bao") == [row_of(bench, key)]


def test_BY_05_checking_the_target_tells_of_it_and_it_cannot_be_removed(bench: AzureBench) -> None:
    key = bench.key()
    another_key(bench, key)
    bench.vault.faults.add(forbidden(), on="^PATCH", times=1)
    brought(bench, key)
    found = {one.name: one for one in bench.targets.check(bench.call("CheckTarget"), "bao")}
    assert not found["copies"].passed
    assert key.name in found["copies"].detail
    with pytest.raises(WrongState) as caught:
        bench.targets.delete(bench.call("DeleteTarget"), "bao")
    assert (caught.value.reason, "--copies-unknown" in caught.value.message) == ("TARGET_IN_USE", True)


def test_FT_39_a_target_that_is_gone_is_removed_and_its_copies_are_unknown(bench: AzureBench) -> None:
    proven, wrong = bench.key(), bench.key()
    bench.run(proven)
    another_key(bench, wrong)
    bench.vault.faults.add(forbidden(), on="^PATCH", times=1)
    brought(bench, wrong)
    bench.targets.delete(bench.call("DeleteTarget", validate_only=True), "bao", copies_unknown=True)
    assert row_of(bench, proven).state is ImportState.PROVEN
    bench.targets.delete(bench.call("DeleteTarget"), "bao", copies_unknown=True)
    assert bench.store.get(Target, "bao") is None
    assert {row_of(bench, key).state for key in (proven, wrong)} == {ImportState.UNKNOWN}
    assert alarms(bench.store, "") == []
    with pytest.raises(BrokerError) as caught:
        bench.register()
    assert caught.value.reason == "TARGET_NAME_USED"
    assert bench.register("another").name == "another"


def test_FT_39_a_target_without_copies_gives_its_name_free(bench: AzureBench) -> None:
    bench.targets.delete(bench.call("DeleteTarget"), "bao", copies_unknown=True)
    assert bench.register().name == "bao"
