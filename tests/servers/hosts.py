"""Two hosts' worth of brokers: two supervisors with two workers each on one PostgreSQL and one SoftHSM token."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from broker.store.election import LEADER_LOCK
from tests.servers.live import Client, Live, free_address, within
from tests.servers.patience import HASTY
from tests.servers.postgres import Postgres

WORKERS = 2
LEADER = f"""
FROM pg_stat_activity JOIN pg_locks USING (pid)
WHERE locktype = 'advisory' AND objsubid = 1 AND classid = {LEADER_LOCK >> 32} AND objid = {LEADER_LOCK & 0xFFFFFFFF}
  AND granted AND datname = current_database()
"""


class Host(Live):
    """One of them; ``name`` is its replica name."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder)
        self.name = name

    def workers(self) -> dict[int, int]:
        """The process of each worker by its number."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        found = {}
        for child in children:
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if b"--worker" in words:
                found[int(words[words.index(b"--worker") + 1])] = int(child)
        return found

    def by_worker(self) -> dict[int, Client]:
        """A connection to each worker: one is opened until all have been met, which the chains tell."""
        found: dict[int, Client] = {}
        pause = threading.Event()
        while len(found) < WORKERS:
            client = self.client()
            before = len(self.records())
            client.ask("GetPolicy")
            (chain,) = {
                record["chain"] for record in self.records()[before:] if record.get("rpc") == "PolicyService/GetPolicy"
            }
            worker = int(re.fullmatch(rf"{self.name}-w(\d+)-.*", chain)[1])  # type: ignore[index]
            if worker in found:
                client.close()
                pause.wait(0.1)  # the other may be about to start
            else:
                found[worker] = client
        return found


def set_up(folder: Path, url: str, *options: str, workers: int = WORKERS) -> Host:
    """A broker on that database, ready to be started; hasty, so that a leader that stands still is soon replaced."""
    host = Host(folder / "a", "a")
    addresses = ["--operators-address", "127.0.0.1:0", "--pipelines-address", "127.0.0.1:0"]
    done = host.command("init", str(host.folder), "--database", url, "--patience", f"{HASTY:g}", *addresses, *options)
    assert done.returncode == 0, done.stderr
    text = host.config.read_text()
    text = text.replace("[server]\n", f"[server]\nworkers = {workers}\nthreads = 8\n")
    text = text.replace("[store]\n", '[store]\nreplica = "a"\n')
    host.config.write_text(text)
    return host


def beside(host: Host, name: str) -> Host:
    """Another host: its own ports and journal, the same database, token and folder of certificates."""
    other = Host(host.folder.parent / name, name)
    other.folder.mkdir(mode=0o700)
    (other.folder / "journal").mkdir(mode=0o700)
    shutil.copytree(host.folder / "profile", other.folder / "profile")
    (other.folder / "certificates").symlink_to(host.folder / "certificates")
    text = host.config.read_text().replace(str(host.folder / "journal"), str(other.folder / "journal"))
    text = text.replace('replica = "a"', f'replica = "{name}"')
    for address in (host.address, host.pipelines):
        text = text.replace(f'"{address}"', f'"{free_address()}"')
    other.config.write_text(text)
    return other


@contextmanager
def two_hosts(folder: Path, postgres: Postgres, *options: str) -> Iterator[tuple[Host, Host, str]]:
    """Both running, and the name of their database."""
    database = postgres.create_database()
    first = set_up(folder, postgres.url(database), *options)
    second = beside(first, "b")
    try:
        first.start()
        second.start()
        yield first, second, database
    finally:
        first.close()
        second.close()
        postgres.drop_database(database)


def leader(postgres: Postgres, database: str) -> str:
    """The replica name of the process that leads, or ""."""
    with postgres.connect(database) as connection:
        found = connection.execute(b"SELECT application_name" + LEADER.encode()).fetchall()
    assert len(found) <= 1
    return str(found[0][0]) if found else ""


def depose(postgres: Postgres, database: str) -> None:
    """Take the lock away from the process that has it, as the server does that hears nothing."""
    with postgres.connect(database) as connection:
        connection.execute(b"SELECT pg_terminate_backend(pid, 5000)" + LEADER.encode())


def await_leader(postgres: Postgres, database: str, seconds: float, other_than: str = "") -> str:
    within(seconds, lambda: leader(postgres, database) not in {"", other_than})
    return leader(postgres, database)
