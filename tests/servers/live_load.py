"""Mixed load on a running broker, and what must be true of the broker once it was broken under that load."""

from __future__ import annotations

import os
import random
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pkcs11
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pkcs11 import Attribute, ObjectClass

from broker.config import load as load_config
from broker.hsm.config import HsmConfig
from tests.servers.live import Client, Live, within
from tests.servers.openbao import OpenBao
from tests.servers.refusals import Refused
from tests.servers.softhsm import alone

EC_P256, SIGN = 4, 1
PENDING = 1
BROKEN = {"UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED", "UNKNOWN"}
"""What a caller sees of a broker that dies; UNKNOWN is a stream that was cut in the middle."""


@dataclass
class Promised:
    """What the broker has acknowledged, and what it was asked without an answer."""

    versions: dict[str, int] = field(default_factory=dict)  # key: its newest acknowledged version
    imported: set[tuple[str, int]] = field(default_factory=set)
    signatures: int = 0
    unanswered: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    refusals: list[Refused] = field(default_factory=list)


class Load:
    """Threads that create, sign, rotate, sign and import until they are stopped or the broker is away."""

    def __init__(self, live: Live, promised: Promised, prefix: str, threads: int = 3) -> None:
        self._live = live
        self._promised = promised
        self._stop = threading.Event()
        self._faults: list[BaseException] = []
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(f"{prefix}-{number}",), name=prefix) for number in range(threads)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait for the threads, which end with the broker or after ``stop``."""
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        if self._faults:
            raise self._faults[0]

    def stop(self) -> None:
        """End after the call that each thread is at."""
        self._stop.set()
        self.join()

    def _run(self, name: str) -> None:
        try:
            client = self._live.client()
            for number in range(10_000):
                if self._stop.is_set() or not self._life(client, f"{name}-{number}"):
                    return
        except BaseException as fault:  # noqa: BLE001 (raised again by join)
            self._faults.append(fault)

    def _life(self, client: Client, key: str) -> bool:
        """One key's life; whether the broker was there all along."""
        return (
            self._change(client, "CreateKey", name=key, type=EC_P256, usage=SIGN, exportable=True)
            and self._sign(client, key)
            and self._change(client, "ImportKey", name=key, target="bao")
            and self._change(client, "RotateKey", name=key)
            and self._sign(client, key)
            and self._change(client, "ImportKey", name=key, target="bao")
        )

    def _sign(self, client: Client, key: str) -> bool:
        try:
            signed = client.ask("Sign", name=key, input={"message": key.encode()})
        except Refused as error:
            return self._broken(error)
        with self._lock:
            self._promised.signatures += 1
        assert signed.version == self._promised.versions[key]
        return True

    def _change(self, client: Client, rpc: str, **fields: Any) -> bool:
        fields["request_id"] = str(uuid.uuid4())
        try:
            answer = client.ask(rpc, **fields)
        except Refused as error:
            with self._lock:
                self._promised.unanswered.append((rpc, fields))
            return self._broken(error)
        with self._lock:
            acknowledge(self._promised, rpc, answer)
        return True

    def _broken(self, error: Refused) -> bool:
        assert error.code in BROKEN, error
        self._promised.refusals.append(error)
        return False


@contextmanager
def load(live: Live, promised: Promised, prefix: str) -> Iterator[Load]:
    """Load for as long as the block lasts; its threads are joined whatever happens."""
    running = Load(live, promised, prefix)
    running.start()
    try:
        yield running
    finally:
        running.stop()


def acknowledge(promised: Promised, rpc: str, answer: Any) -> None:
    """Keep what was promised."""
    if rpc == "ImportKey":
        row = getattr(answer, "import")
        promised.imported.add((row.key, row.version))
    else:
        promised.versions[answer.key.name] = max(answer.key.primary_version, promised.versions.get(answer.key.name, 0))


def resume(client: Client, promised: Promised, *, patience: float) -> None:
    """Send again, under its own request id, whatever was not answered; every piece must come to a good end.

    An upload that was cut off is not repeated before its grace is over (``IMPORT_IN_PROGRESS``): with ``patience``
    below that, it is left for later.
    """
    waiting = []
    for rpc, fields in promised.unanswered:
        try:
            answer = client.ask(rpc, **fields)
        except Refused as error:
            if (rpc, error.reason) != ("ImportKey", "IMPORT_IN_PROGRESS"):
                raise AssertionError(f"{rpc} {fields}: {error}") from error
            waiting.append((rpc, fields))
        else:
            acknowledge(promised, rpc, answer)
    promised.unanswered = waiting
    if waiting and patience:
        within(patience, lambda: _settled(client, promised))


def _settled(client: Client, promised: Promised) -> bool:
    resume(client, promised, patience=0)
    return not promised.unanswered


def assert_kept(client: Client, promised: Promised, bao: OpenBao) -> None:
    """Every acknowledged version signs or is there, nothing is half-made, nothing was imported twice."""
    keys = {one.name: one for one in client.everything("ListKeys", "keys")}
    assert promised.versions.keys() <= keys.keys()
    for name, version in promised.versions.items():
        assert keys[name].primary_version == version, f"{name}: {keys[name]}, acknowledged {version}"
        _assert_signs(client, name, version)
    assert_nothing_half_made(client)
    waiting = {fields["name"] for _, fields in promised.unanswered}
    rows = [one for one in client.everything("ListImports", "imports") if one.key not in waiting]
    assert promised.imported == {(one.key, one.version) for one in rows} | {
        one for one in promised.imported if one[0] in waiting
    }
    assert {one.state for one in rows} <= {2}, rows  # PROVEN
    _assert_once(rows, bao)


def _assert_signs(client: Client, name: str, version: int) -> None:
    signed = client.ask("Sign", name=name, input={"message": b"after"})
    assert signed.version == version
    key = load_pem_public_key(client.ask("GetPublicKey", name=name, version=version).pem.encode())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(signed.signature, b"after", ec.ECDSA(hashes.SHA256()))


def assert_nothing_half_made(client: Client) -> None:
    """No key and no version is still PENDING."""
    for key in client.everything("ListKeys", "keys"):
        assert key.state != PENDING, key
        versions = client.ask("ListKeyVersions", name=key.name).versions
        assert PENDING not in {one.state for one in versions}, versions


def _assert_once(rows: list[Any], bao: OpenBao) -> None:
    for name, count in Counter(one.remote_name for one in rows).items():
        held = bao.request("GET", f"{bao.mount}/keys/{name}")["data"]["keys"]
        assert len(held) == count, f"{name} has {len(held)} versions at the target for {count} imports"
    assert len({(one.remote_name, one.remote_version) for one in rows}) == len(rows)


def census(config: HsmConfig) -> dict[str, list[str]]:
    """Which keys the token holds, by CKA_ID in hex; for ``alone``, since a process has one PKCS#11 module."""
    os.environ.update(config.environment)
    token = pkcs11.lib(str(config.module)).get_token(token_label=config.token_label)
    found: dict[str, list[str]] = {}
    with token.open(user_pin=config.pin_file.read_text().strip()) as session:
        for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY, ObjectClass.SECRET_KEY):
            for thing in session.get_objects({Attribute.CLASS: kind}):
                found.setdefault(thing[Attribute.ID].hex(), []).append(kind.name)
    return found


def whole_keys(live: Live) -> set[str]:
    """The CKA_IDs of the key pairs, each of which must be one private and one public object.

    Beside them are the root key and the one that wraps the key of the rows.
    """
    found = alone(census, load_config(live.config).hsm)
    found.pop("", None)
    pairs = {name for name, kinds in found.items() if kinds == ["PRIVATE_KEY", "PUBLIC_KEY"]}
    others = {name: kinds for name, kinds in found.items() if name not in pairs}
    assert list(others.values()) == [["SECRET_KEY"]] * 2, others
    return pairs


def assert_no_orphan(live: Live, versions: int) -> None:
    """The token holds one whole key pair for each version and for each of the broker's own three keys, and no more.

    SoftHSM writes an object attribute by attribute: of one that a kill cut short there may be a remnant without an id,
    which nobody can name and nothing finds.
    """
    found = whole_keys(live)
    assert len(found) == versions + 3, f"{len(found)} keys for {versions} versions"


def crash_rounds(live: Live, bao: OpenBao, rounds: int, *, patience: float) -> None:
    """FT-01: SIGKILL after 0 to 500 ms of mixed load, restart, resume, compare with what was acknowledged."""
    promised = Promised()
    for number in range(rounds):
        with load(live, promised, f"r{number}"):
            threading.Event().wait(random.uniform(0, 0.5))  # noqa: S311 (no secret)
            within(20, lambda: sum([*promised.versions.values()]) >= number)  # noqa: B023 (of this round)
            live.kill()
        took = live.start()
        assert took <= live.back_seconds, f"it took {took:.1f} s to come back"
        resume(live.client(), promised, patience=0)
    client = live.client()
    resume(client, promised, patience=patience)
    assert_kept(client, promised, bao)
    versions = sum(promised.versions.values())
    assert versions >= rounds - 1, "there was hardly any load"
    code = live.terminate()
    assert code == 0, code
    assert_no_orphan(live, versions)
    report = live.verify(*live.torn())
    assert report.count("\nbroker-") >= rounds, report
    leaks = live.holding(live.pin.encode(), bao.broker_token.encode())
    assert leaks == [], leaks
    assert "Traceback" not in live.said, live.said[-2000:]
