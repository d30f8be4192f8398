"""SoftHSM behind the shim of ``softhsm/shim``: exact key wrap, faults on demand, a log of every call.

The shim and plain SoftHSM cannot be in one process, and one process has one of either: what the session shares runs
in a process of its own (``exact_hsm``).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from broker.core import errors
from broker.core.errors import BrokerError
from broker.core.kinds import EncryptionAlgorithm, OaepHash, Purpose, SignatureAlgorithm
from broker.core.model import WrappingKey
from broker.core.ports import KeyRef
from broker.core.report import HsmReport, Origin
from broker.hsm.config import HsmConfig
from broker.hsm.pkcs11 import Pkcs11Hsm
from tests.servers.softhsm import FRESH, make_token

ROOT = Path(__file__).resolve().parents[2]
SHIM = ".make/pkcs11-shim.so"


def build_shim() -> Path:
    """The compiled shim; make does nothing when it is there and newer than its sources."""
    done = subprocess.run(["make", "--no-print-directory", SHIM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / SHIM


def make_shim_token(folder: Path, **options: Any) -> HsmConfig:
    """As ``make_token``, reached through the shim: ``Shim(folder)`` then steers it and reads its log."""
    config = make_token(folder, **options)
    environment = {
        **config.environment,
        "PKCS11_SHIM_MODULE": str(config.module),
        "PKCS11_SHIM_CONTROL": str(folder / "shim.control"),
        "PKCS11_SHIM_LOG": str(folder / "shim.log"),
    }
    return config.model_copy(update={"module": build_shim(), "environment": environment})


def put_shim_before(config: Path, folder: Path) -> Shim:
    """From its next start on, the broker with this configuration file reaches its module through the shim.

    ``folder`` gets the control file and the log.
    """
    before, _, token = config.read_text(encoding="utf-8").partition("[hsm.environment]\n")
    (module,) = re.findall(r"^module = (.*)$", before, re.MULTILINE)
    added = (
        f"PKCS11_SHIM_MODULE = {module}\n"
        f"PKCS11_SHIM_CONTROL = {json.dumps(str(folder / 'shim.control'))}\n"
        f"PKCS11_SHIM_LOG = {json.dumps(str(folder / 'shim.log'))}\n"
    )
    before = before.replace(f"module = {module}", f"module = {json.dumps(str(build_shim()))}")
    config.write_text(f"{before}[hsm.environment]\n{added}{token}", encoding="utf-8")
    return Shim(folder)


@dataclass(frozen=True, slots=True)
class Call:
    """One call as the log has it. ``objects`` and their classes; ``templates``: attribute type to flag or None."""

    process: int
    function: str
    code: int
    injected: bool
    session: int
    mechanism: int | None
    objects: list[list[int | None]]
    made: list[int]
    templates: list[list[list[Any]]]

    def template(self, number: int = 0) -> dict[int, Any]:
        return dict(self.templates[number])


class Shim:
    """The control file and the log of a token that ``make_shim_token`` made in this folder."""

    def __init__(self, folder: Path) -> None:
        self._control = folder / "shim.control"
        self._log = folder / "shim.log"

    def obey(self, *lines: str) -> None:
        """From the next call on these rules hold and no other; every count begins anew. No line: forward all."""
        new = self._control.with_suffix(".new")
        new.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
        os.utime(new, ns=(time.time_ns(), time.time_ns()))  # finer than the file system's own clock
        new.replace(self._control)

    def calls(self, *functions: str) -> list[Call]:
        """What was called so far, oldest first: of these functions, or of all."""
        lines = self._log.read_text(encoding="ascii").splitlines() if self._log.exists() else []
        calls = [Call(**json.loads(line)) for line in lines]
        return [call for call in calls if not functions or call.function in functions]

    def forget(self) -> None:
        """Begin the log anew."""
        self._log.unlink(missing_ok=True)


_hsm: Pkcs11Hsm
_OF_THE_DEVICE = frozenset({"random", "claims", "add_claim", "drop_claims", "guard", "report", "check", "close"})


def _open(config: HsmConfig) -> None:
    global _hsm  # noqa: PLW0603 - the process exists for this one HSM
    _hsm = Pkcs11Hsm(config)


def _call(purpose: Purpose, method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, list[str]]:
    asked = _hsm if method in _OF_THE_DEVICE else _hsm.keyring(purpose)
    try:
        return getattr(asked, method)(*arguments, **options), []
    except BrokerError as refusal:
        return refusal.metadata, [type(refusal).__name__, refusal.reason, refusal.message]


class KeyringElsewhere:
    """The ``Hsm`` port on a token in another process, one call at a time."""

    def __init__(self, process: ProcessPoolExecutor, purpose: Purpose) -> None:
        self._process = process
        self._purpose = purpose

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        answer, refusal = self._process.submit(_call, self._purpose, method, arguments, options).result(timeout=200)
        if refusal:
            kind, reason, message = refusal
            raise getattr(errors, kind)(reason, message, **answer)
        return answer

    def generate(self, key: KeyRef, *, exportable: bool, fresh: bool = False) -> bytes | None:
        made: bytes | None = self._ask("generate", key, exportable=exportable, fresh=fresh)
        return made

    def check_value(self, key: KeyRef) -> bytes:
        value: bytes = self._ask("check_value", key)
        return value

    def public_key(self, key: KeyRef) -> bytes | None:
        read: bytes | None = self._ask("public_key", key)
        return read

    def origin(self, key: KeyRef) -> Origin:
        told: Origin = self._ask("origin", key)
        return told

    def sign(
        self, key: KeyRef, algorithm: SignatureAlgorithm, messages: list[bytes], *, prehashed: bool = False
    ) -> list[bytes]:
        signed: list[bytes] = self._ask("sign", key, algorithm, messages, prehashed=prehashed)
        return signed

    def encrypt(self, key: KeyRef, algorithm: EncryptionAlgorithm, plaintext: bytes, aad: bytes) -> bytes:
        sealed: bytes = self._ask("encrypt", key, algorithm, plaintext, aad)
        return sealed

    def decrypt(self, key: KeyRef, algorithm: EncryptionAlgorithm, ciphertext: bytes, aad: bytes) -> bytes:
        opened: bytes = self._ask("decrypt", key, algorithm, ciphertext, aad)
        return opened

    def wrap(self, key: KeyRef, kek: WrappingKey, oaep_hash: OaepHash, *, exact: bool) -> bytes:
        blob: bytes = self._ask("wrap", key, kek, oaep_hash, exact=exact)
        return blob

    def differing(self, key: KeyRef, *, exportable: bool) -> tuple[str, ...]:
        found: tuple[str, ...] = self._ask("differing", key, exportable=exportable)
        return found

    def seal(self, key: KeyRef) -> None:
        self._ask("seal", key)

    def destroy(self, key: KeyRef) -> None:
        self._ask("destroy", key)

    def report(self) -> HsmReport:
        report: HsmReport = self._ask("report")
        return report


class HsmElsewhere(KeyringElsewhere):
    """The ``Device`` port on such a token, itself the keyring of callers' keys: the tests' own has plain SoftHSM."""

    def __init__(self, config: HsmConfig) -> None:
        super().__init__(ProcessPoolExecutor(1, FRESH, _open, (config,)), Purpose.KEY)

    def keyring(self, purpose: Purpose) -> KeyringElsewhere:
        return KeyringElsewhere(self._process, purpose)

    def random(self, length: int) -> bytes:
        drawn: bytes = self._ask("random", length)
        return drawn

    def claims(self) -> list[bytes]:
        there: list[bytes] = self._ask("claims")
        return there

    def add_claim(self, value: bytes) -> None:
        self._ask("add_claim", value)

    def drop_claims(self, values: Collection[bytes]) -> None:
        self._ask("drop_claims", values)

    def guard(self, check: Callable[[], None]) -> None:
        self._ask("guard", check)

    def check(self) -> None:
        self._ask("check")

    def close(self) -> None:
        self._ask("close")
        self._process.shutdown()


@pytest.fixture(scope="session")
def exact_hsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HsmElsewhere]:
    """The HSM edge on SoftHSM through the shim."""
    opened = HsmElsewhere(make_shim_token(tmp_path_factory.mktemp("shim")))
    yield opened
    opened.close()
