"""The list of keys among many: how soon its first page is there, and what each key costs in memory.

In a process of its own, on SQLite, from the call to the bytes of the answer; TLS and gRPC are not in it.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

from broker_api.v1 import keys_pb2

from broker.core.kinds import ImportState, ScheduleState
from broker.core.model import Import, KeyUsed
from broker.core.schedule import KeySchedule
from broker.rpc.keys import KeyMethods
from broker.rpc.pages import PageTokens
from broker.store.config import StoreConfig
from broker.store.sql import SqlStore
from tests.bench.process import megabytes
from tests.bench.tables import table
from tests.contracts.store.samples import ROW_KEY, T0, key, version
from tests.servers.databases import migrate
from tests.worlds.world import World

KEYS, STEP, WARM, ROUNDS = 10_000, 500, 500, 7
TARGETS = ("bao", "prod")


def measure(folder: Path) -> str:
    """The table of it."""
    folder.mkdir(mode=0o700)
    command = [sys.executable, "-m", "tests.bench.inventory", str(folder)]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    lines = [[name, *(f"{value:.0f}" for value in values)] for name, values in told["pages"].items()]
    return (
        f"## The list of keys among {KEYS:,}, each with two versions at two targets\n\n"
        + table(["median ms", "longest ms", "CPU ms"], lines)
        + f"\nThe process grew by {told['bytes']:.0f} bytes a key, once each had been listed.\n"
    )


def main(folder: Path) -> None:
    """What the process of its own does: prints the figures as JSON."""
    place = StoreConfig(url=f"sqlite:///{folder}/broker.db", journal=folder / "journal", patience_seconds=30)
    migrate(place)
    world = World()
    store = SqlStore(place, ROW_KEY, world.clock)
    world.restart(store=store)
    rpc = KeyMethods(
        world.keys, world.use, world.settling, world.rotations, world.schedules, world.inventory, world.oversight,
        PageTokens(bytes(32)),
    )  # fmt: skip
    furnish(world, 0, WARM)
    everything(world, rpc)
    before = resident()
    furnish(world, WARM, WARM + KEYS)
    everything(world, rpc)
    grown = (resident() - before) / KEYS
    asked = {
        "first page of 100": keys_pb2.ListKeysRequest(),
        "first page of 1,000": keys_pb2.ListKeysRequest(page_size=1000),
        "the overdue ones among all": keys_pb2.ListKeysRequest(overdue=True),
        "those with a label that one key in 5,000 has": keys_pb2.ListKeysRequest(labels={"rare": "yes"}),
    }
    pages = {name: times(world, rpc, request) for name, request in asked.items()}
    print(json.dumps({"pages": pages, "bytes": grown}))
    store.close()


def furnish(world: World, first: int, end: int) -> None:
    """Keys with all that stands beside them, put there as rows."""
    for start in range(first, end, STEP):
        numbers = range(start, min(end, start + STEP))
        names = [f"key-{number:06}" for number in numbers]
        with world.store.write(world.asked("-/Bench").outcome()) as write:
            write.add(*(key(f"key-{number:06}", primary=2, labels=labels(number)) for number in numbers))
            write.add(*(version(name, number) for name in names for number in (1, 2)))
            write.add(*(copy(name, number, target) for name in names for number in (1, 2) for target in TARGETS))
            write.add(*(schedule(name) for name in names))
            write.add(*(KeyUsed(key=name, principal="pipeline/deploy", used_at=T0) for name in names))


def labels(number: int) -> dict[str, str]:
    """One key in 5,000 is rare."""
    return {"team": "billing", "env": "prod"} | ({"rare": "yes"} if number % 5000 == 4999 else {})


def copy(name: str, number: int, target: str) -> Import:
    """A proven one."""
    return Import(
        key=name, version=number, target=target, remote_name=name, remote_version="0" * 32, state=ImportState.PROVEN,
        kek_thumbprint="0" * 64, blob_sha256="0" * 64, failure="", started_at=T0, proven_at=T0,
    )  # fmt: skip


def schedule(name: str) -> KeySchedule:
    """One that is not due."""
    later = T0 + timedelta(days=3000)
    return KeySchedule(
        key=name, state=ScheduleState.ACTIVE, every=7_776_000, jitter=0, blackouts=(), warn=86_400, grace=86_400,
        set_by="operator/alice", version=2, next_at=later, look_at=later, failure="", created_at=T0,
    )  # fmt: skip


def everything(world: World, rpc: KeyMethods) -> None:
    """Every page of the list."""
    token = ""
    while True:
        request = keys_pb2.ListKeysRequest(page_size=1000, page_token=token)
        token = rpc.list_keys(world.asked("KeyService/ListKeys"), request).next_page_token
        if not token:
            return


def times(world: World, rpc: KeyMethods, request: keys_pb2.ListKeysRequest) -> tuple[float, float, float]:
    """The median and the longest, and the processor's share of each, in milliseconds."""
    took, begun = [], time.process_time()
    for _ in range(ROUNDS):
        start = time.perf_counter()
        rpc.list_keys(world.asked("KeyService/ListKeys"), request).SerializeToString()
        took.append((time.perf_counter() - start) * 1000)
    return statistics.median(took), max(took), (time.process_time() - begun) * 1000 / ROUNDS


def resident() -> float:
    """Bytes in memory, after what nobody holds any more is gone."""
    gc.collect()
    return megabytes(os.getpid()) * 1024 * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]))
