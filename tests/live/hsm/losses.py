"""What the tests of recovery and of load share."""

from __future__ import annotations

import ctypes
from pathlib import Path

from broker.core.kinds import EncryptionAlgorithm, SignatureAlgorithm
from tests.servers.softhsm import KeysHsm, make_token

ES256 = SignatureAlgorithm.ES256


GCM = EncryptionAlgorithm.AES_GCM


class Saboteur:
    """Does to the module behind the broker's back what a failing device does, between two calls.

    Between: PKCS#11 leaves C_Finalize and C_CloseAllSessions under a running call undefined, and SoftHSM crashes then.
    """

    def __init__(self, hsm: KeysHsm, tokens: Path) -> None:
        self._hsm = hsm
        self._functions = ctypes.CDLL(str(hsm.sessions.module.path))
        self._tokens = tokens

    def finalize(self) -> None:
        with self._hsm.paused():
            self._functions.C_Finalize(None)

    def close_all_sessions(self) -> None:
        with self._hsm.paused():
            self._functions.C_CloseAllSessions(ctypes.c_ulong(self._hsm.sessions.token.slot.slot_id))

    def log_out(self) -> None:
        log_out(self._hsm)

    def take_token_away(self) -> None:
        with self._hsm.paused():
            self._tokens.rename(self._tokens.with_name("away"))

    def bring_token_back(self) -> None:
        with self._hsm.paused():
            self._tokens.with_name("away").rename(self._tokens)


def log_out(hsm: KeysHsm) -> None:
    """Take the whole process's login away, by whichever of its sessions."""
    with hsm.paused() as workers:
        for worker in filter(None, workers[:1]):
            ctypes.CDLL(str(hsm.sessions.module.path)).C_Logout(ctypes.c_ulong(worker.session.handle))


def _quick(folder: Path, **changes: float) -> tuple[KeysHsm, Saboteur]:
    config = make_token(folder).model_copy(update={"reload_interval": 0.0, "retry_interval": 0.0, **changes})
    hsm = KeysHsm(config)
    return hsm, Saboteur(hsm, folder / "tokens")
