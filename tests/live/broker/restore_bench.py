"""The nouns with pending work on real parts: SoftHSM, and a database of either kind that can be put back."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from broker import acceptance
from broker.core.claiming import Claim
from broker.core.errors import BrokerError, NotFound, Unavailable
from broker.core.keys.refs import ref
from broker.core.kinds import KeyType, KeyUsage, Purpose
from broker.core.model import Key, KeyVersion, RootKey
from broker.core.ports import Device, Hsm, KeyRef
from broker.core.secrets.lifecycle import parse_reference
from broker.core.secrets.root_rows import ref as root_ref
from broker.hsm.pkcs11 import Pkcs11Hsm
from broker.store.config import StoreConfig
from broker.store.sql import SqlStore
from tests.contracts.store.samples import ROW_KEY, SIGNER, config, read_journal
from tests.fakes.background import carry_on
from tests.fakes.calls import Clock
from tests.servers.databases import create_database, migrate
from tests.servers.postgres import Postgres
from tests.worlds.world import World

ONCE = "0b7e8f3e-1f5f-4c7e-9d59-0f6a4b3a2c1d"
FIELDS = {"password": b"canary-5518"}


class LosesAnswers:
    """A real HSM whose next new key is made, and nobody hears of it; or that is away for the next change."""

    def __init__(self, hsm: Hsm, device: Device | None = None, roots: Any = None) -> None:
        self._hsm, self._device, self._roots = hsm, device, roots
        self.lose = self.fail = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hsm, name)

    def keyring(self, purpose: Purpose) -> Any:
        """As the device: the keyring of callers' keys is this."""
        assert self._device is not None
        return {Purpose.KEY: self, Purpose.ROOT: self._roots}.get(purpose) or self._device.keyring(purpose)

    def _answer(self) -> None:
        if self.fail:
            self.fail = False
            raise Unavailable("HSM_UNAVAILABLE", "It is away.")

    def seal(self, key: KeyRef) -> None:
        self._answer()
        self._hsm.seal(key)

    def destroy(self, key: KeyRef) -> None:
        self._answer()
        self._hsm.destroy(key)

    def generate(self, *args: Any, **options: Any) -> bytes | None:
        self._answer()
        made = self._hsm.generate(*args, **options)
        if self.lose:
            self.lose = False
            raise Unavailable("HSM_UNAVAILABLE", "The answer was lost.")
        return made


class Broker(World):
    """A world with pending work, on a database that can be put back."""

    store: SqlStore

    def __init__(self, place: StoreConfig, hsm: Pkcs11Hsm, backup: Callable[[], Callable[[], None]]) -> None:
        self.place, self.device, self._backup, clock = place, hsm, backup, Clock()
        self.roots = LosesAnswers(hsm.keyring(Purpose.ROOT))
        ring = LosesAnswers(hsm.keyring(Purpose.KEY), hsm, self.roots)
        super().__init__(self._opened(clock), ring, clock, keep=timedelta(0))
        self.secrets.roots.ensure(self.call("FirstRootKey"))

    def _opened(self, clock: Clock) -> SqlStore:
        return SqlStore(self.place, ROW_KEY, clock, SIGNER.genuine)

    def open(self) -> None:
        self.restart(store=self._opened(self.clock))

    def sign(self) -> None:
        SIGNER.sign_due(self.store)

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
                SqlStore(self.place, ROW_KEY, self.clock, SIGNER.genuine)
            assert refused.value.reason == "STORE_RESTORED"
            assert "accepted" in self.accept()
            self.open()

        return restore

    def accept(self) -> str:
        store = SqlStore(self.place, ROW_KEY, self.clock, SIGNER.genuine, accept_restored=True, passing=True)
        try:
            return acceptance.accept(
                store, self.place.journal, self.clock, Claim(store, self.device, self.clock, "bench")
            )
        finally:
            store.close()

    def accept_again(self) -> str:
        self.store.close()
        try:
            return self.accept()
        finally:
            self.open()

    def call(self, method: str, **more: Any) -> Any:
        return self.asked(f"KeyService/{method}", **more)

    def create(self, name: str = "pay", **more: Any) -> Key:
        return self.keys.create(
            self.call("CreateKey", **more), name, KeyType.EC_P256, KeyUsage.SIGN, exportable=False, labels={}, owner=""
        )

    def half_made(self, what: Callable[[], object]) -> None:
        self.hsm.lose = self.roots.lose = True
        with pytest.raises(Unavailable):
            what()
        self.hsm.lose = self.roots.lose = False

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
            done += carry_on(self.operations, self.clock)
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
        return self._there(lambda: self.roots.public_key(root_ref(root)))

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


@pytest.fixture(params=["sqlite", "postgresql"])
def broker(request: pytest.FixtureRequest, tmp_path: Path, hsm: Pkcs11Hsm) -> Iterator[Broker]:
    server: Postgres | None = request.getfixturevalue("postgres") if request.param == "postgresql" else None
    name = create_database(server) if server else ""
    file = tmp_path / "broker.db"
    place = config(server.url(name) if server else f"sqlite:///{file}", tmp_path)
    migrate(place)

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
