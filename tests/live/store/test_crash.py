"""Processes killed while they write, and volumes that fill up or turn read-only, on both databases."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from broker.core.model import Key, KeyVersion
from broker.store.config import StoreConfig
from broker.store.sql import SqlStore
from tests.contracts.store.samples import (
    ROW_KEY,
    SIGNER,
    calls,
    config,
    entry,
    key,
    opened,
    read_journal,
    version,
)
from tests.servers.databases import create_database, migrate
from tests.servers.dba import Dba
from tests.servers.postgres import Postgres
from tests.servers.softhsm import FRESH


def write_on(place: StoreConfig, tag: str, told: Connection) -> None:
    """Writes from four threads until it is killed, and tells of each write when it is acknowledged."""
    store = SqlStore(place, ROW_KEY, lambda: datetime.now(UTC))

    def write(thread: int) -> None:
        for number in range(1_000_000):
            name = f"{tag}-{thread}-{number}"
            with store.write(entry(name)) as write:
                write.add(key(name))
                write.add(version(name))
            os.write(told.fileno(), f"{name}\n".encode())
            if number % 10 == 0:
                for head in store.heads():
                    store.save_head(head)

    for thread in range(4):
        threading.Thread(target=write, args=(thread,)).start()
    threading.Event().wait()


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoreConfig]:
    if request.param == "sqlite":
        found = config(f"sqlite:///{tmp_path}/broker.db", tmp_path, journal_file_bytes=64 * 1024)
        migrate(found)
        yield found
        return
    server: Postgres = request.getfixturevalue("postgres")
    name = create_database(server)
    found = config(server.url(name), tmp_path, journal_file_bytes=64 * 1024)
    migrate(found)
    yield found
    server.drop_database(name)


def killed_while_writing(place: StoreConfig, tag: str, acknowledgements: int) -> list[str]:
    """Start the writer, kill it after that many acknowledged writes; the names that it acknowledged."""
    reader, told = FRESH.Pipe(duplex=False)
    writer = FRESH.Process(target=write_on, args=(place, tag, told))
    writer.start()
    told.close()
    with reader, os.fdopen(os.dup(reader.fileno()), "rb") as lines:
        names = [lines.readline() for _ in range(acknowledgements)]
        writer.kill()
        names += lines.read().splitlines(keepends=True)
    writer.join()
    assert all(names[:acknowledgements])
    return [name.decode().strip() for name in names if name.endswith(b"\n")]


def check_after_crash(place: StoreConfig, acknowledged: set[str]) -> None:
    """P11: nothing acknowledged is lost, nothing is half there, every change has its entry, the chains verify."""
    with opened(place) as store:
        keys = {found.name for found in store.page(Key, limit=10**6)}
        assert acknowledged <= keys
        assert {found.key for found in store.page(KeyVersion, limit=10**6)} == keys
        store.check()
        SIGNER.sign_due(store)
    signed = [chain for chain in read_journal(place.journal).values() if any(one.get("signature") for one in chain)]
    assert keys <= set(calls(place.journal))
    assert (
        sum("former_chain" in chain[0]["facts"] for chain in signed) == len(signed) - 1
    )  # each but the first is linked


def crash(place: StoreConfig, rounds: int, seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311 - the same points each time
    acknowledged: set[str] = set()
    for number in range(rounds):
        acknowledged |= set(killed_while_writing(place, f"r{number}", dice.randint(1, 60)))
        check_after_crash(place, acknowledged)
    if place.parsed.drivername == "sqlite":
        assert integrity(place) == [("ok",)]


def integrity(place: StoreConfig) -> list[tuple[str, ...]]:
    with opened(place):
        return Dba(place).run("PRAGMA integrity_check")


def test_P11_no_acknowledged_write_is_lost_when_the_process_is_killed(place: StoreConfig) -> None:
    crash(place, 5, 1)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_P11_at_release_size(place: StoreConfig) -> None:
    crash(place, 200, 2)


VOLUME = """
import subprocess, sys, time
from pathlib import Path
from tests.contracts.store.samples import *
from broker.core.errors import Unavailable

volume = Path(sys.argv[1])
def mount(*options):
    subprocess.run(["mount", *options, str(volume)], check=True)
mount("-t", "tmpfs", "-o", f"size={sys.argv[3]},mode=700", "tmpfs")
place = config(f"sqlite:///{sys.argv[2]}", volume)
SqlStore.migrate(place)
store = SqlStore(place, ROW_KEY, now)
put(store, key("before"))

def refusals(reasons):
    for number in range(50):
        for attempt in (lambda: store.record(entry("refused")), lambda: put(store, key(f"refused-{number}"))):
            began = time.monotonic()
            try:
                attempt()
            except Unavailable as refused:
                assert refused.reason in reasons, refused.reason
            else:
                raise SystemExit("not refused")
            assert time.monotonic() - began < 30
    try:
        store.check()
    except Unavailable:
        return
    raise SystemExit("check did not see it")

with (volume / "ballast").open("wb", buffering=0) as ballast:
    try:
        while True:
            ballast.write(bytes(4096))
    except OSError:
        pass
try:
    for number in range(1000):  # what is left of the last page of the journal
        store.record(entry("filling"))
except Unavailable as refused:
    assert refused.reason == "AUDIT_UNAVAILABLE"
refusals({"AUDIT_UNAVAILABLE", "STORE_UNAVAILABLE"})
(volume / "ballast").unlink()
store.check()
put(store, key("after"))
assert [found.name for found in store.page(Key, limit=99)] == ["after", "before"]
store.close()
read_journal(place.journal)
assert "refused" not in calls(place.journal), "a refused entry is in the journal"
print("ok")
"""


@pytest.mark.parametrize("where", ["journal", "both"])
def test_FT_10_a_full_volume_is_a_refusal_and_heals_without_a_restart(tmp_path: Path, where: str) -> None:
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o700)
    database = tmp_path / "own" / "broker.db" if where == "journal" else volume / "store" / "broker.db"
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    done = subprocess.run(
        [*unshare, sys.executable, "-c", VOLUME, str(volume), str(database), "4m"],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
