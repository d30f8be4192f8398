"""A database that was restored re-arms nothing: what was still to be done is held until an operator says so (ST-04)."""

from __future__ import annotations

import json
import shutil
import sqlite3
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from broker.core.errors import Unavailable
from broker.core.holding import Holding, held_work
from broker.core.keys.refs import ref
from broker.core.kinds import KeyState, VersionState
from broker.core.model import Key
from broker.hsm.pkcs11 import Pkcs11Hsm
from tests.contracts.store.samples import config
from tests.fakes.calls import call, operator
from tests.fakes.refusals import refused
from tests.live.broker.live_story import EC_P256, SIGN
from tests.live.broker.restore_bench import ONCE, Broker, broker
from tests.servers.databases import migrate
from tests.servers.live import Live, cli

__all__ = ["broker"]  # fixture
pytestmark = pytest.mark.sampled(1)
"""Each on one of the databases, as the run's seed chooses; `make soak` has both."""


# ---- destructions ----------------------------------------------------------------------------------------------------


def test_ST_04_a_destruction_that_was_called_off_does_not_come_back_with_the_backup(broker: Broker) -> None:
    broker.create()
    broker.keys.schedule_destruction(broker.call("ScheduleKeyDestruction"), "pay", timedelta(days=1))
    restore = broker.backup()
    broker.keys.cancel_destruction(broker.call("CancelKeyDestruction"), "pay")
    broker.keys.enable(broker.call("EnableKey"), "pay")
    assert broker.signs()
    broker.clock.forward(days=3)
    restore()
    assert broker.loop() == 0
    assert broker.in_hsm(1)
    assert (broker.key().state, broker.key().destroy_at) == (KeyState.HELD, None)
    assert held_work(broker.store) == 1
    (told,) = broker.told("key/pay")
    assert told["state"] == "held"
    assert told["destroy_at"].startswith("2026-05-05")
    refused(broker.signs, reason="KEY_STATE")
    refused(lambda: broker.keys.enable(broker.call("EnableKey"), "pay"), reason="KEY_STATE")
    broker.keys.cancel_destruction(broker.call("CancelKeyDestruction"), "pay")
    assert broker.key().state is KeyState.DISABLED
    broker.keys.enable(broker.call("EnableKey"), "pay")
    assert broker.signs()
    assert held_work(broker.store) == 0


def test_ST_04_a_held_key_is_destroyed_once_an_operator_has_scheduled_that_again(broker: Broker) -> None:
    broker.create()
    broker.keys.schedule_destruction(broker.call("ScheduleKeyDestruction"), "pay", timedelta(days=1))
    restore = broker.backup()
    broker.keys.cancel_destruction(broker.call("CancelKeyDestruction"), "pay")
    restore()
    due = broker.clock() + timedelta(days=1)
    broker.keys.schedule_destruction(broker.call("ScheduleKeyDestruction"), "pay", timedelta(days=1))
    assert broker.key().destroy_at == due
    assert broker.in_hsm(1)
    assert broker.loop() == 1
    assert broker.key().state is KeyState.DESTROYED
    assert not broker.in_hsm(1)


def test_ST_04_a_second_acceptance_changes_nothing(broker: Broker) -> None:
    broker.create()
    broker.half_made(broker.rotate)
    restore = broker.backup()
    broker.create("other")
    restore()
    broker.create("fresh")
    broker.keys.schedule_destruction(broker.call("ScheduleKeyDestruction"), "fresh", None)
    assert "nothing was changed" in broker.accept_again()
    fresh = broker.store.get(Key, "fresh")
    assert fresh is not None
    assert (fresh.state, broker.version(2).state) == (KeyState.DESTROY_SCHEDULED, VersionState.HELD)
    assert len(broker.told("key/pay")) == 1


# ---- key versions ----------------------------------------------------------------------------------------------------


def test_ST_04_a_version_that_was_being_made_is_neither_undone_nor_completed(broker: Broker) -> None:
    broker.create()
    broker.half_made(lambda: broker.rotate(request_id=ONCE))
    restore = broker.backup()
    assert broker.rotate(request_id=ONCE).primary == 2  # the client comes back, and it is completed and used
    restore()
    assert broker.loop() == 0
    assert broker.in_hsm(2)
    assert (broker.version(2).state, broker.key().primary) == (VersionState.HELD, 1)
    assert broker.settling.held() == broker.settling.held("pay") == {"pay": [2]}
    refused(lambda: broker.rotate(request_id=ONCE), reason="KEY_VERSION_HELD")
    assert broker.in_hsm(2)
    (told,) = broker.told("key/pay")
    assert (told["state"], told["version"]) == ("held", 2)
    assert broker.signs()  # with the version that is whole


def test_ST_04_a_held_version_is_kept_as_the_hsm_has_it(broker: Broker) -> None:
    broker.create()
    broker.half_made(broker.rotate)
    restore = broker.backup()
    broker.create("other")
    restore()
    assert broker.settle(2, keep=True, validate_only=True).primary == 2
    assert broker.version(2).state is VersionState.HELD
    number = "1b7e8f3e-1f5f-4c7e-9d59-0f6a4b3a2c1d"
    for _ in range(2):
        assert broker.settle(2, keep=True, request_id=number).primary == 2
    public = broker.version(2).public_key
    assert public is not None
    assert public == broker.hsm.public_key(ref(broker.key(), broker.version(2)))
    assert (broker.signs(), broker.settling.held()) == (True, {})
    refused(lambda: broker.settle(2, keep=False), reason="KEY_VERSION_NOT_HELD")
    refused(lambda: broker.settle(1, keep=False), reason="KEY_VERSION_NOT_HELD")
    assert (broker.in_hsm(1), broker.in_hsm(2)) == (True, True)


def test_ST_04_a_held_version_is_discarded_with_what_the_hsm_has_of_it(broker: Broker) -> None:
    broker.create()
    broker.half_made(broker.rotate)
    restore = broker.backup()
    broker.create("other")
    restore()
    assert broker.settle(2, keep=False, validate_only=True).primary == 1
    assert broker.in_hsm(2)
    for _ in range(2):
        assert broker.settle(2, keep=False).primary == 1
    assert not broker.in_hsm(2)
    assert broker.version(2).state is VersionState.DESTROYED
    assert (broker.signs(), broker.rotate().primary) == (True, 3)


def test_ST_04_what_the_hsm_never_made_cannot_be_kept(broker: Broker) -> None:
    broker.hsm.fail = True
    with pytest.raises(Unavailable):
        broker.create(request_id=ONCE)
    restore = broker.backup()
    broker.create("other")
    restore()
    assert broker.loop() == 0
    refused(lambda: broker.create(request_id=ONCE), reason="KEY_VERSION_HELD")
    refused(lambda: broker.settle(1, keep=True), reason="KEY_NOT_IN_HSM")
    assert broker.version(1).state is VersionState.HELD
    assert broker.settle(1, keep=False).state is KeyState.DESTROYED
    refused(broker.create, reason="NAME_TAKEN")  # it may have been in use since the backup


def test_ST_04_a_key_that_never_had_another_version_is_enabled_when_it_is_kept(broker: Broker) -> None:
    broker.half_made(broker.create)
    restore = broker.backup()
    broker.create("other")
    restore()
    kept = broker.settle(1, keep=True)
    assert (kept.state, kept.primary, broker.signs()) == (KeyState.ENABLED, 1, True)


def test_ST_04_settling_needs_the_permission_the_version_and_a_request_id_of_its_own(broker: Broker) -> None:
    broker.create()
    broker.half_made(lambda: broker.rotate(request_id=ONCE))
    restore = broker.backup()
    broker.create("other")
    restore()
    nobody = call("KeyService/SettleKeyVersion", operator("mallory"), broker.clock)
    refused(lambda: broker.settling.settle(nobody, "pay", 2, keep=False), reason="POLICY_DENIED")
    refused(lambda: broker.settle(0, keep=False), reason="VERSION_INVALID")
    refused(lambda: broker.settle(7, keep=False), reason="KEY_VERSION_NOT_FOUND")
    other = broker.call("SettleKeyVersion", request_id=ONCE)
    other.digest = "1" * 64
    refused(lambda: broker.settling.settle(other, "pay", 2, keep=False), reason="REQUEST_ID_REUSED")
    assert (broker.in_hsm(2), broker.version(2).state) == (True, VersionState.HELD)


# ---- rows that cannot be read ----------------------------------------------------------------------------------------


def test_TL_18_a_damaged_row_holds_up_no_acceptance_and_is_told(tmp_path: Path, hsm: Pkcs11Hsm) -> None:
    file = tmp_path / "broker.db"
    place = config(f"sqlite:///{file}", tmp_path)
    migrate(place)
    broker = Broker(place, hsm, lambda: lambda: None)
    for name in ("pay", "damaged"):
        broker.create(name)
        broker.keys.schedule_destruction(broker.call("ScheduleKeyDestruction"), name, timedelta(days=1))
    broker.store.close()
    database = sqlite3.connect(file)
    with database:
        database.execute("UPDATE keys SET labels = 'no json' WHERE name = 'damaged'")
    database.close()
    broker.open()
    holding = Holding(broker.store, lambda resource: replace(broker.call("AcceptRestore"), resource=resource))
    assert (holding.hold(), holding.unreadable(), holding.hold()) == (1, 1, 0)
    assert broker.key().state is KeyState.HELD
    assert broker.loop() == 0
    broker.store.close()


# ---- through the programs --------------------------------------------------------------------------------------------


def test_ST_04_the_whole_way_through_the_programs(tmp_path: Path) -> None:
    live = Live(tmp_path / "broker")
    try:
        live.start()
        with live.client() as admin:
            admin.ask("CreateKey", name="pay", type=EC_P256, usage=SIGN)
            admin.ask("ScheduleKeyDestruction", name="pay")
        assert live.terminate() == 0
        backup = shutil.copy(live.folder / "broker.db", tmp_path / "backup.db")
        live.start()
        with live.client() as admin:
            admin.ask("CancelKeyDestruction", name="pay")
        assert live.terminate() == 0
        shutil.copy(backup, live.folder / "broker.db")
        accepted = live.command("accept-restore", "--config", str(live.config))
        assert (accepted.returncode, "1 things that were still to be done are held" in accepted.stdout) == (0, True)
        looked = live.command("check", "--config", str(live.config), "--format", "json")
        (store,) = [one for one in json.loads(looked.stdout) if one["name"] == "store"]
        assert (store["doubtful"], "1 thing(s) are held" in store["detail"]) == (True, True)
        live.start()
        settle_by_command(live.folder / "profile")
        assert live.terminate() == 0
        live.verify()
    finally:
        live.close()


def settle_by_command(profile: Path) -> None:
    (key,) = json.loads(cli("key", "list", "--format", "json", profile=profile).stdout)
    assert (key["name"], key["state"], key["destroy_time"], key["held_versions"]) == ("pay", "held", None, [])
    assert cli("key", "enable", "pay", profile=profile).returncode != 0
    not_held = cli("key", "settle", "pay", "discard", "--version", "1", "--yes", profile=profile)
    assert "KEY_VERSION_NOT_HELD" in not_held.stderr
    assert cli("key", "cancel-destroy", "pay", "--dry-run", profile=profile).returncode == 0
    (key,) = json.loads(cli("key", "list", "--format", "json", profile=profile).stdout)
    assert key["state"] == "held"
    done = json.loads(cli("key", "cancel-destroy", "pay", "--format", "json", profile=profile).stdout)
    assert done["state"] == "disabled"
    root = json.loads(cli("secret", "settle-root", "1", "keep", "--format", "json", profile=profile).stdout)
    assert root == {"version": 1}
