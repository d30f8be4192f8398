"""The import noun on real parts: SoftHSM, a SQLite store with its journal, a transit mount of its own in OpenBao."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from broker.core import ports
from broker.core.call import Call
from broker.core.imports.importing import Imports
from broker.core.keys.refs import ref
from broker.core.kinds import KeyState, KeyType, KeyUsage, VersionState
from broker.core.model import Import, Key, KeyVersion, Principal, Target
from broker.core.ports import KeyRef
from broker.core.targets.register import Targets
from broker.store.config import StoreConfig
from broker.store.sql import SqlStore
from broker.targets import Surroundings, connector
from broker.targets.vault.policy import policy
from tests.contracts.store.samples import ROW_KEY
from tests.fakes.calls import Clock, operator
from tests.servers.databases import migrate
from tests.servers.live import within
from tests.servers.openbao import OpenBao
from tests.servers.patience import PATIENCE
from tests.worlds.world import Fronted, World


class Mount:
    """A transit engine, and a token of one test's own for it in a credentials folder.

    Without a ``path`` the engine is the test's own too, which costs the server an RSA-4096 key.
    """

    def __init__(self, server: OpenBao, folder: Path, path: str = "") -> None:
        self.server = server
        self.path = path or f"transit-{secrets.token_hex(6)}"
        self.token_file = f"bao.{secrets.token_hex(6)}"
        self.credentials = folder / "credentials"
        if not path:
            self.make()
        self.give(policy(self.path))

    def make(self) -> None:
        self.server.make_mount(self.path)

    def successor(self) -> str:
        """A mount with another KEK and without keys, which can take this one's place (``renew``) in no time."""
        path = f"transit-{secrets.token_hex(6)}"
        self.server.make_mount(path)
        return path

    def renew(self, successor: str = "") -> None:
        """The same mount with another KEK, and without its keys."""
        successor = successor or self.successor()
        self.server.request("DELETE", f"sys/mounts/{self.path}")
        moved = self.server.request("POST", "sys/remount", {"from": successor, "to": self.path})["migration_id"]
        status = f"sys/remount/status/{moved}"
        within(20, lambda: self.server.request("GET", status)["data"]["migration_info"]["status"] == "success")

    def give(self, text: str) -> None:
        """From now on the broker's token may do what this policy says."""
        self.token = self.server.token_for(text, self.token_file)
        self.server.write_token(self.credentials, self.token_file, self.token)

    def settings(self, address: str = "", ca_pem: str = "") -> dict[str, str]:
        """For the server, or for another address that is given the same token."""
        if address:
            host = address.removeprefix("https://")
            self.server.write_token(self.credentials, self.token_file, self.token, host)
        return {
            "address": address or self.server.address,
            "mount": self.path,
            "ca_pem": ca_pem or self.server.ca_pem,
            "token_file": self.token_file,
        }

    def key(self, name: str) -> dict[str, object]:
        """What the server says of a key."""
        found: dict[str, object] = self.server.request("GET", f"{self.path}/keys/{name}")["data"]
        return found

    def versions(self, name: str) -> list[str]:
        keys = self.key(name)["keys"]
        assert isinstance(keys, dict)
        return sorted(keys)


def same(one: Import, other: Import) -> bool:
    """Whether they are the same import, whenever it was proven last."""
    return replace(one, revision=0, proven_at=None) == replace(other, revision=0, proven_at=None)


class Ground(World):
    """A world that needs but a target to import to."""

    store: SqlStore
    kind = "vault"
    settings: Mapping[str, str]

    def __init__(self, hsm: ports.Hsm, folder: Path, surroundings: Surroundings) -> None:
        self.journal = folder / "journal"
        config = StoreConfig(url=f"sqlite:///{folder}/broker.db", journal=self.journal, patience_seconds=PATIENCE)
        migrate(config)
        clock = Clock()
        self.connect = connector(surroundings)
        super().__init__(SqlStore(config, ROW_KEY, clock), hsm, clock, connect=self.connect)

    def targets_with(self, connect: object) -> Targets:
        return self.elsewhere(connect=connect).targets

    def imports_with(self, connect: object) -> Imports:
        return self.elsewhere(connect=connect).imports

    def import_by(self, connect: object, hsm: ports.Hsm | None = None) -> None:
        """From now on keys go to targets, by wire and by hand, as in another process that has this way to them."""
        nouns = self.elsewhere(connect=connect, hsm=Fronted(self.hsm, hsm) if hsm else self.hsm)
        self.imports, self.handover = nouns.imports, nouns.handover

    def call(self, method: str, *groups: str, request_id: str = "", validate_only: bool = False) -> Call:
        who: Principal = operator("alice", *(groups or ("admins",)))
        return self.asked(f"ImportService/{method}", who, request_id=request_id, validate_only=validate_only)

    def register(self, name: str = "bao") -> Target:
        return self.targets.create(self.call("CreateTarget"), name, self.kind, dict(self.settings), "")

    def key(
        self,
        key_type: KeyType = KeyType.EC_P256,
        usage: KeyUsage | None = None,
        *,
        exportable: bool = True,
    ) -> Key:
        """A key generated in the HSM, of a fresh name, as the keys noun would have left it."""
        name = f"k-{secrets.token_hex(6)}"
        chosen = usage or (KeyUsage.ENCRYPT if key_type.symmetric else KeyUsage.SIGN)
        key = Key(
            name=name, type=key_type, usage=chosen, exportable=exportable, labels={}, owner="operator/alice",
            state=KeyState.ENABLED, primary=1, latest=1, created_at=self.clock(),
        )  # fmt: skip
        with self.store.write(self.call("CreateKey").outcome()) as write:
            write.add(key)
            write.add(self._version(key, 1))
        return key

    def rotate(self, key: Key) -> Key:
        """One more version, which becomes the primary one."""
        new = replace(key, primary=key.latest + 1, latest=key.latest + 1)
        with self.store.write(self.call("RotateKey").outcome()) as write:
            write.add(self._version(key, new.latest))
            return write.replace(key, new)

    def change(self, old: Key, new: Key) -> Key:
        with self.store.write(self.call("UpdateKey").outcome()) as write:
            return write.replace(old, new)

    def change_version(self, old: KeyVersion, new: KeyVersion) -> None:
        with self.store.write(self.call("UpdateKey").outcome()) as write:
            write.replace(old, new)

    def ref(self, key: Key, number: int = 1) -> KeyRef:
        return ref(key, self.version(key, number))

    def version(self, key: Key, number: int = 1) -> KeyVersion:
        held = self.store.get(KeyVersion, key.name, number)
        assert held is not None
        return held

    def run(self, key: Key, version: int = 0, *, remote_name: str = "", request_id: str = "") -> Import:
        return self.imports.import_key(
            self.call("ImportKey", request_id=request_id), key.name, version, "bao", remote_name
        ).row

    def row(self, key: Key, number: int = 1) -> Import | None:
        found = [one for one in self.rows(key) if one.version == number]
        assert len(found) <= 1
        return found[0] if found else None

    def rows(self, key: Key) -> list[Import]:
        return self.store.page(Import, limit=1000, where={"key": key.name, "target": "bao"})

    def arrived(self, key: Key) -> bool:
        """Whether the target has any key of this name."""
        return self.connect("bao", self.kind, self.settings).versions(key.name) != []

    def journalled(self) -> str:
        return "".join(file.read_text() for file in sorted(self.journal.rglob("*")) if file.is_file())

    def close(self) -> None:
        self.store.close()

    def _version(self, key: Key, number: int) -> KeyVersion:
        version = KeyVersion(
            key=key.name, number=number, state=VersionState.ENABLED, hsm_id=secrets.token_bytes(16),
            public_key=None, sealed=False, created_at=self.clock(),
        )  # fmt: skip
        return replace(version, public_key=self.hsm.generate(ref(key, version), exportable=key.exportable))


class Bench(Ground):
    """A ground with a mount of OpenBao as its target ``bao``."""

    def __init__(self, mount: Mount, hsm: ports.Hsm, folder: Path, hosts: frozenset[str] = frozenset()) -> None:
        self.mount = mount
        super().__init__(
            hsm,
            folder,
            Surroundings(
                allowed_hosts=hosts | {mount.server.host}, credentials=mount.credentials, vault_transfer_files=True
            ),
        )
        self.settings = mount.settings()
