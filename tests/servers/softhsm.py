"""A real SoftHSM token, and the broker's HSM edge on it.

A PKCS#11 module is initialised once a process, so there is one ``hsm`` a session: a test that needs another token,
another config or a fresh start runs it in a process of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import pytest

from broker.core.kinds import EncryptionAlgorithm, OaepHash, Purpose, SignatureAlgorithm
from broker.core.model import WrappingKey
from broker.core.ports import KeyRef
from broker.core.report import Origin
from broker.hsm.config import HsmConfig
from broker.hsm.pkcs11 import Pkcs11Hsm
from broker.hsm.sessions import Clock, Worker
from broker.hsm.tokens import create_softhsm_token, find_softhsm

R = TypeVar("R")
PIN = "canary-pin-4711"
LABEL = "broker-tests"


def make_token(folder: Path, *, label: str = LABEL, pin: str = PIN, sessions: int = 8) -> HsmConfig:
    """A fresh SoftHSM token in this folder and the config for it."""
    environment = create_softhsm_token(folder, label, pin, "canary-so-pin-4711")
    pin_file = folder / "pin"
    descriptor = os.open(pin_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(pin + "\n")
    return HsmConfig(
        module=find_softhsm(), token_label=label, pin_file=pin_file, environment=environment, sessions=sessions
    )


class KeysHsm(Pkcs11Hsm):
    """The device; for the ease of tests itself the keyring of callers' keys too.

    ``sessions`` and ``finder`` are its inner parts, for what others do to a token behind the broker's back: a module is
    initialised once a process, so nobody else can be in there.
    """

    def __init__(self, config: HsmConfig, clock: Clock = time.monotonic) -> None:
        super().__init__(config, clock)
        self._keys = self.keyring(Purpose.KEY)
        self.sessions, self.finder = self._sessions, self._finder

    def locked(self, work: Callable[[Worker], R]) -> R:
        """What ``work`` returns, done on a session of the pool while nobody else makes or searches objects."""

        def alone_there(worker: Worker) -> R:
            with self.sessions.objects:
                return work(worker)

        return self.sessions.run(alone_there)

    def forget_handles(self) -> None:
        """Know no key's handle, as after a start."""
        self.sessions.run(lambda worker: worker.handles.clear())

    def reloads(self) -> int:
        """How often the module was begun anew since the start."""
        return self.sessions.run(lambda worker: worker.epoch) - 1

    def idle(self) -> int:
        """How many sessions nobody uses just now."""
        return self.sessions._idle.qsize()  # noqa: SLF001 - no answer of the device tells it

    @contextmanager
    def paused(self) -> Iterator[list[Worker | None]]:
        """No call is in the module, and none begins: it can be harmed without being crashed. Gives all sessions."""
        pool = self.sessions
        with pool._reloading:  # noqa: SLF001 - a reload in the middle would wait for the sessions that are held here
            taken = [pool._idle.get(timeout=200) for _ in range(pool._size)]  # noqa: SLF001 - none, if the token is away
            try:
                yield taken
            finally:
                pool._fill(taken)  # noqa: SLF001 - what was taken above

    def generate(self, key: KeyRef, *, exportable: bool, fresh: bool = False) -> bytes | None:
        return self._keys.generate(key, exportable=exportable, fresh=fresh)

    def check_value(self, key: KeyRef) -> bytes:
        return self._keys.check_value(key)

    def public_key(self, key: KeyRef) -> bytes | None:
        return self._keys.public_key(key)

    def origin(self, key: KeyRef) -> Origin:
        return self._keys.origin(key)

    def sign(
        self, key: KeyRef, algorithm: SignatureAlgorithm, messages: list[bytes], *, prehashed: bool = False
    ) -> list[bytes]:
        return self._keys.sign(key, algorithm, messages, prehashed=prehashed)

    def encrypt(self, key: KeyRef, algorithm: EncryptionAlgorithm, plaintext: bytes, aad: bytes) -> bytes:
        return self._keys.encrypt(key, algorithm, plaintext, aad)

    def decrypt(self, key: KeyRef, algorithm: EncryptionAlgorithm, ciphertext: bytes, aad: bytes) -> bytes:
        return self._keys.decrypt(key, algorithm, ciphertext, aad)

    def wrap(self, key: KeyRef, kek: WrappingKey, oaep_hash: OaepHash, *, exact: bool) -> bytes:
        return self._keys.wrap(key, kek, oaep_hash, exact=exact)

    def differing(self, key: KeyRef, *, exportable: bool) -> tuple[str, ...]:
        return self._keys.differing(key, exportable=exportable)

    def seal(self, key: KeyRef) -> None:
        self._keys.seal(key)

    def destroy(self, key: KeyRef) -> None:
        self._keys.destroy(key)


@pytest.fixture(scope="session")
def softhsm(tmp_path_factory: pytest.TempPathFactory) -> HsmConfig:
    """The config of a token made for this test session."""
    return make_token(tmp_path_factory.mktemp("softhsm"))


@pytest.fixture(scope="session")
def hsm(softhsm: HsmConfig) -> Iterator[KeysHsm]:
    """The HSM edge on that token."""
    opened = KeysHsm(softhsm)
    yield opened
    opened.close()


FRESH = get_context("forkserver")
"""For processes that share nothing with this one: forks of one that has imported what they need, and done no more."""
FRESH.set_forkserver_preload([
    "pytest", "broker.acceptance", "broker.checkup", "broker.options", "broker.supervisor", "broker.store.migrate",
    "broker.store.postgresql",
    "tests.servers.shim", "tests.contracts.hsm.keys", "tests.servers.warm", "tests.servers.command_line",
])  # fmt: skip


def alone(function: Callable[..., R], *arguments: object, seconds: float = 200) -> R:
    """Call a module-level function in a fresh process and return what it returns; its AssertionError comes through."""
    with ProcessPoolExecutor(1, mp_context=FRESH) as process:
        return process.submit(function, *arguments).result(timeout=seconds)
