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
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.bench import births, peers
from tests.bench.load import CONNECTIONS, STREAMS, Figures, Request, drive, hop, median
from tests.bench.peers import BATCH, Peer

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"


def main() -> None:
    """Measure and print; the exit code says only whether everything could be measured."""
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="bench-") as name, ExitStack() as stack:
        folder = Path(name)
        tables = [*compare(folder, options, stack), starts(options.rounds * 5)]
    text = page(tables, options)
    print(text)
    if options.write:
        PAGE.write_text(text, encoding="utf-8")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds of each case (default 5)")
    parser.add_argument("--seconds", type=float, default=4, help="length of one round (default 4)")
    parser.add_argument("--births", type=int, default=200, help="keys to create, import and prove (default 200)")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    return parser.parse_args()


def compare(folder: Path, options: argparse.Namespace, stack: ExitStack) -> list[str]:
    """Start both, drive both, and give the tables."""
    for part in ("openbao", "broker-hop", "openbao-hop"):
        (folder / part).mkdir()
    bao = stack.enter_context(peers.openbao(folder / "openbao"))
    broker = stack.enter_context(peers.broker_dev(folder / "broker", bao.host))
    both = [peers.broker_peer(broker), peers.openbao_peer(bao)]
    hops = {peer.name: stack.enter_context(hop(peer.door, folder / f"{peer.name.lower()}-hop")) for peer in both}
    sign = alternate(both, hops, lambda peer: peer.sign, options)
    batch = alternate(both, hops, lambda peer: peer.batch, options)
    tables = [
        "## P-256 sign\n\n" + rows(sign, 1),
        f"## P-256 sign, {BATCH} messages a call\n\n" + rows(batch, BATCH) + against_single(sign, batch),
    ]
    peers.register_target(broker, bao, "bench")
    born = births.measure(broker, options.births)
    tables.append(
        "## A P-256 key born in the HSM, imported into OpenBao and proven there\n\n"
        + table(["keys/s", "p50 ms", "p99 ms"], [["broker", f"{born.rate:.1f}", f"{born.p50:.1f}", f"{born.p99:.1f}"]])
    )
    memory = [[peer.name, f"{peers.peak_megabytes(peer.pid):.0f}"] for peer in both]
    return [*tables, "## Peak memory, whole run\n\n" + table(["MiB"], memory)]


def alternate(
    both: list[Peer], hops: dict[str, str], case: Callable[[Peer], Request], options: argparse.Namespace
) -> dict[str, Figures]:
    """Warm both up, size a round by what they did, then take turns; each one's median."""
    calls = {}
    for peer in both:
        drive(hops[peer.name], case(peer), 500)
        calls[peer.name] = max(500, int(drive(hops[peer.name], case(peer), 1000).rate * options.seconds))
    runs: dict[str, list[Figures]] = {peer.name: [] for peer in both}
    for number in range(options.rounds):
        for peer in both if number % 2 == 0 else reversed(both):
            runs[peer.name].append(drive(hops[peer.name], case(peer), calls[peer.name]))
            print(f"{peer.name:>8} {case(peer).path}: {runs[peer.name][-1].rate:.0f}/s", file=sys.stderr)
    return {name: median(figures) for name, figures in runs.items()}


def rows(result: dict[str, Figures], signatures: int) -> str:
    """One case as a table, with the ratio broker / OpenBao."""
    lines = [
        [name, f"{one.rate:.0f}", f"{one.rate * signatures:.0f}", f"{one.p50:.2f}", f"{one.p99:.2f}"]
        for name, one in result.items()
    ]
    ours, theirs = result["broker"], result["OpenBao"]
    lines.append([
        "ratio", f"{ours.rate / theirs.rate:.2f}", f"{ours.rate / theirs.rate:.2f}",
        f"{ours.p50 / theirs.p50:.2f}", f"{ours.p99 / theirs.p99:.2f}",
    ])  # fmt: skip
    return table(["calls/s", "signatures/s", "p50 ms", "p99 ms"], lines)


def against_single(sign: dict[str, Figures], batch: dict[str, Figures]) -> str:
    """The broker's batch against the peer's single calls."""
    ratio = batch["broker"].rate * BATCH / sign["OpenBao"].rate
    return f"\nSignatures/s in the broker's batches, as a ratio to OpenBao's single calls: {ratio:.2f}\n"


def starts(times: int) -> str:
    """How long `broker --help` takes, as a ratio to an interpreter that only imports click."""
    commands = {
        "broker --help": [str(Path(sys.executable).with_name("broker")), "--help"],
        'python -c "import click"': [sys.executable, "-c", "import click"],
    }
    took: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(times):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            took[name].append((time.perf_counter() - start) * 1000)
    medians = {name: statistics.median(values) for name, values in took.items()}
    ours, theirs = medians.values()
    lines = [[name, f"{value:.0f}"] for name, value in medians.items()] + [["ratio", f"{ours / theirs:.2f}"]]
    return "## Start of the command line\n\n" + table(["ms"], lines)


def table(heads: list[str], lines: list[list[str]]) -> str:
    """Markdown, numbers to the right."""
    text = f"| | {' | '.join(heads)} |\n|---|{'---:|' * len(heads)}\n"
    return text + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page(tables: list[str], options: argparse.Namespace) -> str:
    """The whole of docs/benchmarks.md."""
    return (
        "# Benchmarks\n\n"
        f"Made by `make bench` on {dt.datetime.now(dt.UTC):%Y-%m-%d}: {os.cpu_count()} cores ({processor()}), "
        f"{platform.system()} {platform.release().split('-')[0]}, Python {platform.python_version()}. "
        f"h2load → nghttpx → server, all on this machine; {CONNECTIONS} connections with {STREAMS} streams each; "
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
