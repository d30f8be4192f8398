"""A database that was restored re-arms nothing: what was still to be done is held until an operator says so (ST-04)."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from broker import acceptance
from broker.core.errors import BrokerError, NotFound, Unavailable
from broker.core.guard import Guard
from broker.core.holding import Holding, held_work
from broker.core.key_use import KeyUse
from broker.core.keys import Keys, ref
from broker.core.kinds import KeyState, KeyType, KeyUsage, RootKeyState, VersionState
from broker.core.kv import Secrets, parse_reference
from broker.core.model import Key, KeyVersion, RootKey
from broker.core.roots import known_roots
from broker.core.roots import ref as root_ref
from broker.core.sealing import Sealing
from broker.core.settling import Settling
from broker.hsm.pkcs11 import Pkcs11Hsm
from broker.store.config import StoreConfig
from broker.store.sql import SqlStore
from tests.contracts.store_samples import config, read_journal
from tests.fakes.calls import Clock, call, document, operator
from tests.integration.live_story import EC_P256, SIGN
from tests.servers.live import Live, cli
from tests.servers.postgres import Postgres

LONG = timedelta(days=30)
ONCE = "0b7e8f3e-1f5f-4c7e-9d59-0f6a4b3a2c1d"
FIELDS = {"password": b"canary-5518"}


class LosesAnswers:
    """A real HSM whose next new key is made, and nobody hears of it; or is not made at all."""

    def __init__(self, hsm: Pkcs11Hsm) -> None:
        self._hsm = hsm
        self.lose = self.fail = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hsm, name)

    def generate(self, *args: Any, **options: Any) -> bytes | None:
        if self.fail:
            self.fail = False
            raise Unavailable("HSM_UNAVAILABLE", "It is away.")
        made = self._hsm.generate(*args, **options)
        if self.lose:
            self.lose = False
            raise Unavailable("HSM_UNAVAILABLE", "The answer was lost.")
        return made


class Broker:
    """The nouns that have pending work, on a database that can be put back, and a clock that is driven."""

    def __init__(self, place: StoreConfig, hsm: Pkcs11Hsm, backup: Callable[[], Callable[[], None]]) -> None:
        self.place, self.clock = place, Clock()
        self.hsm: Any = LosesAnswers(hsm)
        self._backup = backup
        self.open()
        self.secrets.ensure_root(self.call("FirstRootKey"))

    def open(self) -> None:
        self.store = SqlStore(self.place, self.clock)
        guard = Guard(document())
        sealing = Sealing(self.hsm, known_roots(self.store), self.clock, timedelta(0), tenant="one.example")
        self.keys = Keys(self.store, self.hsm, guard, self.clock)
        self.use = KeyUse(self.store, self.hsm, guard)
        self.settling = Settling(self.store, self.hsm, guard)
        self.secrets = Secrets(self.store, self.hsm, sealing, guard, self.clock)

    def sign(self) -> None:
        (due,) = self.store.heads()
        self.store.save_head(replace(due, signature=b"\x30\x01"))

    def backup(self) -> Callable[[], None]:
        """As of now; what it gives puts it back, and accepts what came of that."""
        self.sign()
        self.store.close()
        put_back = self._backup()
        self.open()

        def restore() -> None:
            self.sign()
            self.store.close()
            put_back()
            with pytest.raises(BrokerError) as refused:
                SqlStore(self.place, self.clock)
            assert refused.value.reason == "STORE_RESTORED"
            assert "accepted" in self.accept()
            self.open()

        return restore

    def accept(self) -> str:
        store = SqlStore(self.place, self.clock, accept_restored=True, passing=True)
        try:
            return acceptance.accept(store, self.place.journal, self.clock)
        finally:
            store.close()

    def accept_again(self) -> str:
        self.store.close()
        try:
            return self.accept()
        finally:
            self.open()

    def call(self, method: str, **more: Any) -> Any:
        return call(f"KeyService/{method}", operator("alice", "admins"), self.clock, **more)

    def create(self, name: str = "pay", **more: Any) -> Key:
        return self.keys.create(
            self.call("CreateKey", **more), name, KeyType.EC_P256, KeyUsage.SIGN, exportable=False, labels={}, owner=""
        )

    def half_made(self, what: Callable[[], object]) -> None:
        self.hsm.lose = True
        with pytest.raises(Unavailable):
            what()

    def rotate(self, **more: Any) -> Key:
        return self.keys.rotate(self.call("RotateKey", **more), "pay")

    def settle(self, number: int, *, keep: bool, **more: Any) -> Key:
        return self.settling.settle(self.call("SettleKeyVersion", **more), "pay", number, keep=keep)

    def settle_root(self, version: int, *, keep: bool, **more: Any) -> None:
        self.secrets.roots.settle(self.call("SettleRootKey", **more), version, keep=keep)

    def rotate_root(self) -> int:
        return self.secrets.rotate_root(self.call("RotateRootKey"))

    def put(self) -> None:
        self.secrets.put(self.call("PutSecret"), "team/db", FIELDS, expected_version=None, labels={}, expires_at=None)

    def read(self) -> dict[str, bytes]:
        return dict(self.secrets.read(self.call("FetchSecrets"), parse_reference("team/db")).fields)

    def loop(self) -> int:
        """The background loop's rounds over two days; how many pieces of work there were."""
        done = 0
        for _ in range(4):
            self.clock.forward(hours=13)
            for chores in (self.keys.chores, self.secrets.chores):
                for resource, work in chores():
                    made = self.call("Chore")
                    made.resource = resource
                    work(made)
                    done += 1
        return done

    def signs(self) -> bool:
        return bool(self.use.sign(self.call("Sign"), "pay", None, [b"m"], prehashed=False).signatures)

    def key(self) -> Key:
        found = self.store.get(Key, "pay")
        assert found is not None
        return found

    def version(self, number: int) -> KeyVersion:
        found = self.store.get(KeyVersion, "pay", number)
        assert found is not None
        return found

    def root(self, version: int) -> RootKey:
        found = self.store.get(RootKey, version)
        assert found is not None
        return found

    def in_hsm(self, number: int) -> bool:
        return self._there(lambda: self.hsm.public_key(ref(self.key(), self.version(number))))

    def root_in_hsm(self, root: RootKey) -> bool:
        return self._there(lambda: self.hsm.public_key(root_ref(root)))

    @staticmethod
    def _there(look: Callable[[], object]) -> bool:
        try:
            look()
        except NotFound:
            return False
        return True

    def told(self, resource: str) -> list[dict[str, Any]]:
        """What the audit says that the acceptance did with it."""
        lines = [line for chain in read_journal(self.place.journal).values() for line in chain]
        return [one["facts"] for one in lines if one.get("rpc") == "-/AcceptRestore" and one["resource"] == resource]


def refused(reason: str, what: Callable[[], object]) -> None:
    with pytest.raises(BrokerError) as found:
        what()
    assert found.value.reason == reason


@pytest.fixture(params=["sqlite", "postgresql"])
def broker(request: pytest.FixtureRequest, tmp_path: Path, hsm: Pkcs11Hsm) -> Iterator[Broker]:
    server: Postgres | None = request.getfixturevalue("postgres") if request.param == "postgresql" else None
    name = server.create_database() if server else ""
    file = tmp_path / "broker.db"
    place = config(server.url(name) if server else f"sqlite:///{file}", tmp_path)
    SqlStore.migrate(place)

    def backup() -> Callable[[], None]:
        if server is None:
            copy = shutil.copy(file, tmp_path / "backup.db")
            return lambda: (shutil.copy(copy, file), None)[1]
        kept = server.create_database(name)

        def put_back() -> None:
            server.drop_database(name)
            with server.connect() as connection:
                connection.execute(f"ALTER DATABASE {kept} RENAME TO {name}".encode())

        return put_back

    made = Broker(place, hsm, backup)
    yield made
    made.store.close()
    if server:
        server.drop_database(name)


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
    refused("KEY_STATE", broker.signs)
    refused("KEY_STATE", lambda: broker.keys.enable(broker.call("EnableKey"), "pay"))
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
    refused("KEY_VERSION_HELD", lambda: broker.rotate(request_id=ONCE))
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
    refused("KEY_VERSION_NOT_HELD", lambda: broker.settle(2, keep=False))
    refused("KEY_VERSION_NOT_HELD", lambda: broker.settle(1, keep=False))
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
    refused("KEY_VERSION_HELD", lambda: broker.create(request_id=ONCE))
    refused("KEY_NOT_IN_HSM", lambda: broker.settle(1, keep=True))
    assert broker.version(1).state is VersionState.HELD
    assert broker.settle(1, keep=False).state is KeyState.DESTROYED
    refused("NAME_TAKEN", broker.create)  # it may have been in use since the backup


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
    refused("POLICY_DENIED", lambda: broker.settling.settle(nobody, "pay", 2, keep=False))
    refused("VERSION_INVALID", lambda: broker.settle(0, keep=False))
    refused("KEY_VERSION_NOT_FOUND", lambda: broker.settle(7, keep=False))
    other = broker.call("SettleKeyVersion", request_id=ONCE)
    other.digest = "1" * 64
    refused("REQUEST_ID_REUSED", lambda: broker.settling.settle(other, "pay", 2, keep=False))
    assert (broker.in_hsm(2), broker.version(2).state) == (True, VersionState.HELD)


# ---- root keys -------------------------------------------------------------------------------------------------------


def test_ST_04_a_root_key_that_was_being_made_is_not_used_before_it_is_kept(broker: Broker) -> None:
    broker.put()
    broker.half_made(broker.rotate_root)
    restore = broker.backup()
    broker.create("other")
    restore()
    assert broker.loop() == 0
    held = broker.root(2)
    assert (held.state, broker.root_in_hsm(held), broker.read()) == (RootKeyState.HELD, True, FIELDS)
    assert [one.version for one in broker.secrets.roots.frozen()] == [2]
    broker.settle_root(2, keep=True, validate_only=True)
    assert broker.root(2).state is RootKeyState.HELD
    broker.settle_root(2, keep=True)
    assert broker.root(2).state is RootKeyState.ENABLED
    assert broker.loop() == 2  # what hangs on the first one follows, and that one, which nobody holds, goes
    assert (broker.store.get(RootKey, 1), broker.read()) == (None, FIELDS)


def test_ST_04_a_held_root_key_is_discarded_and_another_one_can_be_made(broker: Broker) -> None:
    broker.put()
    broker.half_made(broker.rotate_root)
    restore = broker.backup()
    broker.create("other")
    restore()
    held = broker.root(2)
    assert broker.rotate_root() == 3
    broker.settle_root(2, keep=False, validate_only=True)
    assert broker.root_in_hsm(held)
    broker.settle_root(2, keep=False)
    assert not broker.root_in_hsm(held)
    refused("ROOT_KEY_NOT_FOUND", lambda: broker.settle_root(2, keep=False))
    assert broker.read() == FIELDS


def test_ST_04_a_root_key_that_was_followed_is_not_destroyed_by_itself(broker: Broker) -> None:
    broker.put()
    broker.rotate_root()
    restore = broker.backup()
    broker.create("other")
    restore()
    first = broker.root(1)
    assert (first.state, broker.root(2).state) == (RootKeyState.KEPT, RootKeyState.ENABLED)
    assert broker.read() == FIELDS  # it still opens what hangs on it
    assert broker.loop() == 1  # the secret is wrapped anew; nothing is destroyed
    assert broker.root_in_hsm(first)
    assert held_work(broker.store) == 0
    broker.settle_root(1, keep=True)
    assert (broker.root(1).state, broker.loop()) == (RootKeyState.KEPT, 0)
    broker.settle_root(1, keep=False)
    assert broker.loop() == 1
    assert not broker.root_in_hsm(first)
    assert broker.read() == FIELDS


def test_ST_04_a_held_root_key_that_others_have_followed_is_kept_and_not_destroyed_at_once(broker: Broker) -> None:
    broker.half_made(broker.rotate_root)
    restore = broker.backup()
    broker.create("other")
    restore()
    assert broker.rotate_root() == 3
    broker.settle_root(2, keep=True)
    assert broker.root(2).state is RootKeyState.KEPT
    broker.loop()
    assert broker.root_in_hsm(broker.root(2))


# ---- rows that cannot be read ----------------------------------------------------------------------------------------


def test_TL_18_a_spoilt_row_holds_up_no_acceptance_and_is_told(tmp_path: Path, hsm: Pkcs11Hsm) -> None:
    file = tmp_path / "broker.db"
    place = config(f"sqlite:///{file}", tmp_path)
    SqlStore.migrate(place)
    broker = Broker(place, hsm, lambda: lambda: None)
    for name in ("pay", "spoilt"):
        broker.create(name)
        broker.keys.schedule_destruction(broker.call("ScheduleKeyDestruction"), name, timedelta(days=1))
    broker.store.close()
    database = sqlite3.connect(file)
    with database:
        database.execute("UPDATE keys SET labels = 'no json' WHERE name = 'spoilt'")
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
