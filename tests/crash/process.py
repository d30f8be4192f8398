"""A process that acts a scene on a real store and a real token, and is killed at one place of it.

    python -m tests.crash.process TITLE PLACE STORE HSM TIME

STORE and HSM are the configurations as JSON. It prints each place that it passes, one a line, before it is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any

from broker.core.errors import BrokerError
from broker.hsm.config import HsmConfig
from broker.store.config import StoreConfig
from broker.store.sql import SqlStore
from tests.contracts.store.samples import ROW_KEY
from tests.crash.harness import Ground, Vault, World
from tests.crash.scenes import SCENES
from tests.fakes.calls import Clock
from tests.servers.softhsm import KeysHsm

LOOK = """
import sys
from pathlib import Path
import pkcs11
from pkcs11 import Attribute, ObjectClass

token = pkcs11.lib(sys.argv[1]).get_token(token_label=sys.argv[2])
with token.open(user_pin=Path(sys.argv[3]).read_text().strip()) as session:
    for one in session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY}):
        print(one[Attribute.ID].hex(), one[Attribute.EXTRACTABLE])
"""


class RealGround(Ground):
    """A store and a token that are on disk."""

    def __init__(self, store: StoreConfig, hsm: HsmConfig, time: datetime) -> None:
        self.clock = Clock()
        self.clock.time = time
        self.store: Any = SqlStore(store, ROW_KEY, self.clock)
        self.hsm: Any = KeysHsm(hsm)
        self._hsm = hsm
        self.vault = Vault()

    def leaving(self) -> dict[bytes, bool]:
        """As another program sees it, which has nothing of the broker's."""
        found = subprocess.run(
            [sys.executable, "-c", LOOK, str(self._hsm.module), self._hsm.token_label, str(self._hsm.pin_file)],
            env={**os.environ, **self._hsm.environment}, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        return {bytes.fromhex(hsm_id): leaves == "True" for hsm_id, leaves in map(str.split, found.splitlines())}

    def announced(self, name: str) -> None:
        """The journal is looked at elsewhere."""

    def close(self) -> None:
        """Let go of both."""
        self.hsm.close()
        self.store.close()


def killed() -> None:
    """This very moment, as a failing machine does it."""
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Act the scene."""
    title, place, store, hsm, time = sys.argv[1:]
    ground = RealGround(
        StoreConfig.model_validate_json(store), HsmConfig.model_validate_json(hsm), datetime.fromisoformat(time)
    )
    world, scene = World(ground), SCENES[title]
    scene.prepare(world)
    world.fate.ends = killed
    world.fate.begin(int(place))
    with suppress(BrokerError):
        scene.act(world)
    sys.stdout.write("\n".join(world.fate.passed) + "\n")
    ground.close()


if __name__ == "__main__":
    main()
