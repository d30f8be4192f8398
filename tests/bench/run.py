"""`make bench`: the broker and OpenBao side by side, the same load tool, the same hop, alternating in one run.

Prints calls a second, latencies, peak memory and the ratio of medians; ``--write`` puts the tables into
docs/benchmarks.md. Figures of different runs or machines cannot be compared, the ratios can. Everything is stored below
TMPDIR: what it is on (a busy disk, memory) decides how fast keys are created, since SoftHSM writes each to a file.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench import commands, generations, inventory, jobs, overhead, peers, rotations, stage
from tests.bench.commands import alternate as alternate_commands
from tests.bench.load import CONNECTIONS, STREAMS, Door, Figures, Request, drive, hop
from tests.bench.peers import BATCH, Peer
from tests.bench.process import megabytes
from tests.bench.stage import BaoSide, BrokerSide
from tests.bench.tables import Side, alternate, rows, table
from tests.servers import postgres
from tests.servers.issuer import Issuer, issuing
from tests.servers.openbao import OpenBao

WARM = 50_000
ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"


def main() -> None:
    """Measure and print; the exit code says only whether everything could be measured."""
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="bench-") as name, ExitStack() as stack:
        folder = Path(name)
        begun = alternate_commands(options.rounds * 4, *commands.starts())
        tables = [*compare(folder, options, stack), "## Start of the command line\n\n" + waits(begun)]
    text = page(tables, options)
    print(text)
    if options.write:
        PAGE.write_text(text, encoding="utf-8")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds of each case (default 5)")
    parser.add_argument("--seconds", type=float, default=3, help="length of one round (default 3)")
    parser.add_argument(
        "--generations", type=int, default=200, help="keys to create, import and prove, and to rotate (default 200)"
    )
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    return parser.parse_args()


def compare(folder: Path, options: argparse.Namespace, stack: ExitStack) -> list[str]:
    """Start both, drive both, and give the tables."""
    (folder / "openbao").mkdir()
    issuer = stack.enter_context(issuing(folder / "issuer"))
    bao = stack.enter_context(peers.openbao(folder / "openbao"))
    broker = stack.enter_context(peers.broker_dev(folder / "broker", bao.host, issuer.host))
    both = {"broker": broker.pid, "OpenBao": peers.process_id(bao.port)}
    resting = {name: megabytes(pid) for name, pid in both.items()}
    ours, theirs = stage.set_broker_up(broker, issuer), stage.set_bao_up(bao, issuer)
    found = [
        *signatures([peers.broker_peer(broker), peers.openbao_peer(bao)], folder, options, stack),
        *generated(broker, bao, options),
        overhead.measure(folder / "overhead", bao, options.generations // 4),
        *secrets(ours, theirs, issuer, folder, options, stack),
        inventory.measure(folder / "inventory"),
        rotations.measure(folder / "rotations", bao, options.generations),
    ]
    memory = [[name, f"{resting[name]:.0f}", f"{megabytes(pid, 'VmHWM'):.0f}"] for name, pid in both.items()]
    found.append("## Memory\n\n" + table(["MiB at rest", "MiB at the most in the whole run"], memory))
    runs = alternate_commands(options.rounds * 3, *commands.runs(ours, theirs, issuer, folder))
    return [*found, "## One secret on the command line, the whole process\n\n" + waits(runs)]


def signatures(both: list[Peer], folder: Path, options: argparse.Namespace, stack: ExitStack) -> list[str]:
    """The HSM's signatures beside those of transit."""
    hops = {peer.name: stack.enter_context(hop(peer.door, folder / f"{peer.name.lower()}-hop")) for peer in both}
    sign = alternate("sign", [driven(peer.name, peer.pid, hops[peer.name], peer.sign) for peer in both], options)
    batch = alternate("batch", [driven(peer.name, peer.pid, hops[peer.name], peer.batch) for peer in both], options)
    return [
        "## P-256 sign\n\n" + rows(sign),
        f"## P-256 sign, {BATCH} messages a call\n\n"
        + rows(batch, "calls", BATCH, "signatures")
        + against_single(sign, batch),
    ]


def generated(broker: peers.Broker, bao: OpenBao, options: argparse.Namespace) -> list[str]:
    """The main job, which OpenBao cannot do by itself."""
    peers.register_target(broker, bao, "bench")
    figures = generations.measure(broker, options.generations)
    line = ["broker", f"{figures.rate:.1f}", f"{figures.p50:.1f}", f"{figures.p99:.1f}"]
    title = "## A P-256 key generated in the HSM, imported into OpenBao and proven there\n\n"
    return [title + table(["keys/s", "p50 ms", "p99 ms"], [line])]


def secrets(
    ours: BrokerSide, theirs: BaoSide, issuer: Issuer, folder: Path, options: argparse.Namespace, stack: ExitStack
) -> list[str]:
    """Whole jobs, fetches of one secret, and writes."""
    whole = alternate("job", [jobs.broker_jobs(ours, issuer), jobs.bao_jobs(theirs, issuer)], options)
    near = stack.enter_context(hop(Door(port=ours.port), folder / "pipelines-hop"))
    far = stack.enter_context(hop(Door(port=theirs.server.port), folder / "kv-hop"))
    fetching = driven("broker", ours.broker.pid, near, ours.fetch)
    pair = stack.enter_context(two_workers(folder, issuer))
    both = stack.enter_context(hop(Door(port=pair.port), folder / "workers-hop"))
    sides = [fetching, driven("two workers", pair.broker.pid, both, pair.fetch)]
    fetch = alternate("fetch", [*sides, driven("OpenBao", theirs.pid, far, theirs.fetch)], options)
    grown = growth(near, ours)
    write = alternate("write", [jobs.broker_writes(ours), jobs.bao_writes(theirs)], options)
    return [
        "## A job: login with an identity token, ten secrets, end of the session\n\n" + rows(whole, "jobs"),
        "## Fetch of one secret with a session's token, beside a kv read\n\n"
        + rows(fetch)
        + f"\nThe broker's memory grew by {grown:.1f} MiB in 100,000 of these calls, after {WARM} to warm up.\n",
        "## Write of a secret, beside a kv write\n\n" + rows(write, "writes"),
    ]


@contextmanager
def two_workers(folder: Path, issuer: Issuer) -> Iterator[BrokerSide]:
    """A broker of two processes on PostgreSQL, whose own processor time is not counted."""
    with postgres.running(Path(tempfile.gettempdir())) as server:
        url = server.url(server.create_database())
        with peers.broker_dev(folder / "workers", "127.0.0.1:1", issuer.host, database=url, workers=2) as broker:
            yield stage.set_broker_up(broker, issuer)


def growth(address: str, side: BrokerSide) -> float:
    """By how many MiB the broker's memory grows in 100,000 fetches."""
    drive(address, side.fetch, WARM)
    before = megabytes(side.broker.pid)
    drive(address, side.fetch, 100_000)
    return megabytes(side.broker.pid) - before


def driven(name: str, pid: int, address: str, request: Request) -> Side:
    """A server that h2load drives with one request."""
    return Side(name=name, pid=pid, go=lambda count: drive(address, request, count))


def waits(medians: dict[str, float]) -> str:
    """Commands as a table, with the ratio of the two."""
    ours, theirs = medians.values()
    return table(
        ["ms"], [[name, f"{value:.0f}"] for name, value in medians.items()] + [["ratio", f"{ours / theirs:.2f}"]]
    )


def against_single(sign: dict[str, Figures], batch: dict[str, Figures]) -> str:
    """The broker's batch against the peer's single calls."""
    ratio = batch["broker"].rate * BATCH / sign["OpenBao"].rate
    return f"\nSignatures/s in the broker's batches, as a ratio to OpenBao's single calls: {ratio:.2f}\n"


def page(tables: list[str], options: argparse.Namespace) -> str:
    """The whole of docs/benchmarks.md."""
    return (
        "# Benchmarks\n\n"
        f"Made by `make bench` on {dt.datetime.now(dt.UTC):%Y-%m-%d}: {os.cpu_count()} cores ({processor()}), "
        f"{platform.system()} {platform.release().split('-')[0]}, Python {platform.python_version()}. "
        f"h2load → nghttpx → server, all on this machine; {CONNECTIONS} connections with {STREAMS} streams each; "
        f"jobs and writes by a small client of this project over {jobs.CONNECTIONS} kept connections, one job or write "
        "at a time on each, without a hop, OpenBao's ten reads of a job sent at once; identity tokens are single-use "
        "at the broker, which OpenBao does not offer; "
        f"medians of {options.rounds} alternating rounds of about {options.seconds:g} s. One broker process (TLS 1.3, "
        "client certificate, policy, audit, SoftHSM, SQLite) beside OpenBao (TLS, raft storage, file audit), which "
        f"signs in software; both store on one file system ({filesystem()}). Only the ratios mean anything on another "
        "machine.\n\n" + "\n".join(tables)
    )


def filesystem() -> str:
    """What kind of file system the temporary folder is on."""
    command = ["stat", "--file-system", "--format=%T", tempfile.gettempdir()]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def processor() -> str:
    """The CPU's name."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")


if __name__ == "__main__":
    main()
