"""Processes that act a scene on a real store, a real token and a vault over the wire, and are killed at one place.

    python -m tests.crash.process

For each order, a line of JSON, it forks a process and prints how that one ended. It has loaded the code and does
nothing else: what is forked opens the token, the store and the connections itself, as a process does that has just been
started, without the two seconds of a processor that it takes to load them.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from broker.core.errors import BrokerError
from broker.core.kinds import Purpose
from broker.core.model import Target, WrappingKey
from broker.hsm.binding import purpose_of
from broker.hsm.config import HsmConfig
from broker.store.config import StoreConfig
from broker.store.sql import SqlStore
from broker.targets import PrivateVault, Surroundings, connector
from broker.targets.azure_key_vault import connection
from tests.contracts.store.samples import ROW_KEY, read_journal
from tests.crash.harness import Ground, Told, World
from tests.crash.kek_vault import Passing
from tests.crash.real_targets import MortalConnect, RealShelf
from tests.crash.scenes import SCENES
from tests.crash.vault_process import VaultAddress, steered
from tests.fakes.calls import Clock
from tests.servers.azure import KIND
from tests.servers.shim import Shim
from tests.servers.softhsm import KeysHsm

LONGEST = 100  # seconds
LOADED = (connection,)  # Azure's client, which the broker loads when it first needs it
LOOK = """
import sys
from pathlib import Path
import pkcs11
from pkcs11 import Attribute, ObjectClass

token = pkcs11.lib(sys.argv[1]).get_token(token_label=sys.argv[2])
with token.open(user_pin=Path(sys.argv[3]).read_text().strip()) as session:
    for kind in ObjectClass.PRIVATE_KEY, ObjectClass.SECRET_KEY:
        for one in session.get_objects({Attribute.CLASS: kind}):
            print(one[Attribute.ID].hex(), one[Attribute.EXTRACTABLE], one[Attribute.LABEL])
"""


class Order(BaseModel):
    """What a process is to do. ``at``: the place where it is killed; None: it goes on with what another has left."""

    title: str
    at: int | None
    store: StoreConfig
    hsm: HsmConfig
    vault: VaultAddress
    folder: Path
    remote: str


class RealGround(Ground):
    """A store and a token that are on disk, and a vault that is another process."""

    def __init__(self, order: Order, time: datetime | None = None) -> None:
        self.clock = Clock()
        self.clock.time = time or self.clock.time
        self.remote = order.remote
        self.store: Any = SqlStore(order.store, ROW_KEY, self.clock)
        self.hsm: Any = KeysHsm(order.hsm)
        self.shelf: Any = RealShelf(order.vault, order.remote)
        self._order = order
        self._steering = steered(order.vault)

    @property
    def founding(self) -> Any:
        """As the files of a broker are there for each of its processes."""
        kept = self._order.folder / "founding"
        return pickle.loads(kept.read_bytes()) if kept.exists() else None  # noqa: S301 - this test has written it

    @founding.setter
    def founding(self, found: Any) -> None:
        (self._order.folder / "founding").write_bytes(pickle.dumps(found))

    def entries(self) -> list[Told]:
        """As the journal on disk has them, which is looked through whole."""
        return [
            Told(**{name: one[name] for name in ("phase", "resource", "reason", "facts")})
            for chain in read_journal(self._order.store.journal).values()
            for one in chain
            if one["kind"] == "entry"
        ]

    def keys_of(self, purpose: Purpose) -> dict[bytes, bool]:
        """As another program sees them, which has nothing of the broker's."""
        hsm = self._order.hsm
        environment = dict(hsm.environment)
        module = environment.pop("PKCS11_SHIM_MODULE")
        lines = subprocess.run(
            [sys.executable, "-c", LOOK, module, hsm.token_label, str(hsm.pin_file)], stdin=subprocess.DEVNULL,
            env={**os.environ, **environment}, capture_output=True, text=True, check=True,
        ).stdout.splitlines()  # fmt: skip
        found = [line.split(" ", 2) for line in lines]
        purposes = [purpose_of(label.encode()) for _, _, label in found]
        assert None not in purposes, "in the token is nothing but the broker's keys"
        return {
            bytes.fromhex(hsm_id): leaves == "True"
            for (hsm_id, leaves, _), one in zip(found, purposes, strict=True)
            if one is purpose
        }

    def make_no_keys(self) -> None:
        """CKR_MECHANISM_INVALID, until the end."""
        Shim(self._order.folder).obey("C_GenerateKeyPair return 0x70", "C_GenerateKey return 0x70")

    def makers(self, passing: Passing) -> Any:
        vault = self._order.vault
        private = PrivateVault(kind="managed-hsm", ca_file=vault.ca_file, token_file=vault.token_file)
        surroundings = Surroundings(
            allowed_hosts=frozenset(),
            credentials=self._order.folder,
            private_vaults={vault.host: private},
            credentials_for={f"{vault.host}/token-file": ("*",)},
        )
        return MortalConnect(connector(surroundings), self.shelf, passing)

    takers = makers

    def new_target(self) -> tuple[str, dict[str, str]]:
        return KIND, {"vault_url": self._order.vault.url, "kek": self.remote, "credential": "token-file"}

    def make_no_keks(self) -> None:
        self._steering.deny_always(self.remote, "create_wrapping_key")

    def keks(self) -> list[WrappingKey]:
        return [
            WrappingKey(
                id=f"{self._order.vault.url}/keys/{self.remote}/{one.version}",
                public_key=one.public_key or b"",
                thumbprint=hashlib.sha256(one.public_key or b"").hexdigest(),
            )
            for one in self.shelf.there(self.remote)
        ]

    def target(self) -> Target:
        kind, settings = self.new_target()
        vault = self._order.vault
        return Target(
            name="bao", kind=kind, settings={**settings, "kek": vault.kek}, kek_id=vault.kek,
            kek_thumbprint=vault.kek_thumbprint, created_at=self.clock(),
        )  # fmt: skip

    def close(self) -> None:
        """Let go of store and token."""
        self.hsm.close()
        self.store.close()


def act(order: Order, at: int) -> None:
    """Act the scene until the process is killed, or to its end; what it had passed is written down."""
    scene = SCENES[order.title]
    ground = RealGround(order)
    world = scene.world(ground)
    scene.prepare(world)
    world.fate.ends = partial(killed, order, world)
    world.fate.begin(at)
    with suppress(BrokerError):
        scene.act(world)
    leave(order, world)
    ground.close()


def leave(order: Order, world: World) -> None:
    """Write down what the next process has from the world, the time, and what people want to read if it fails."""
    left = {"time": world.clock.time.isoformat(), "passed": world.fate.passed}
    (order.folder / "left").write_text(json.dumps(left))


def killed(order: Order, world: World) -> None:
    """This very moment, as a failing machine does it."""
    leave(order, world)
    os.kill(os.getpid(), signal.SIGKILL)


def go_on(order: Order) -> None:
    """Go on with what is left; then all must be whole."""
    scene = SCENES[order.title]
    left = json.loads((order.folder / "left").read_text())
    ground = RealGround(order, datetime.fromisoformat(left["time"]))
    scene.gone_on(scene.world(ground))
    ground.close()


def forked(order: Order) -> int:
    """A process that does it; its exit status, or the signal that ended it, negative."""
    child = os.fork()
    if child == 0:
        _begin(order)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _begin(order: Order) -> None:
    signal.alarm(LONGEST)
    said = os.open(order.folder / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(said, 1)
    os.dup2(said, 2)
    try:
        go_on(order) if order.at is None else act(order, order.at)
    except BaseException:  # noqa: BLE001 (told to whoever ordered it)
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main() -> None:
    """Do as ordered until there are no more orders."""
    World()  # what is computed once in each process: the policy
    for line in sys.stdin:
        assert threading.active_count() == 1, "a process with threads must not fork"
        assert "grpc" not in sys.modules
        sys.stdout.write(f"{forked(Order.model_validate_json(line))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
