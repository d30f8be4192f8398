"""Cases in turns, and what they came to as Markdown."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tests.bench.load import Figures, median
from tests.bench.process import cpu_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One server in one case. ``go`` makes so many calls; ``pid`` is the process that serves them."""

    name: str
    pid: int
    go: Callable[[int], Figures]


def alternate(title: str, sides: Sequence[Side], options: argparse.Namespace) -> dict[str, Figures]:
    """Warm both up, size a round by what they did, then take turns; each one's median."""
    calls = {}
    for side in sides:
        side.go(200)
        calls[side.name] = max(200, int(side.go(200).rate * options.seconds))
    runs: dict[str, list[Figures]] = {side.name: [] for side in sides}
    for number in range(options.rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            found = _measured(side, calls[side.name])
            runs[side.name].append(found)
            print(f"{title}: {side.name:>8} {found.rate:.0f}/s, CPU {found.cpu:.2f} ms", file=sys.stderr)
    return {name: median(figures) for name, figures in runs.items()}


def _measured(side: Side, count: int) -> Figures:
    before = cpu_seconds(side.pid)
    figures = side.go(count)
    return replace(figures, cpu=(cpu_seconds(side.pid) - before) * 1000 / count)


def rows(result: Mapping[str, Figures], unit: str = "calls", each: int = 1, many: str = "") -> str:
    """One case as a table, with the ratio of each two; ``each``: how many of ``many`` a call makes."""
    lines = [_line(name, one, each) for name, one in result.items()]
    theirs = result["OpenBao"]
    for name, ours in result.items():
        if ours is not theirs:
            pairs = ((getattr(ours, part), getattr(theirs, part)) for part in ("rate", "rate", "p50", "p99", "cpu"))
            lines.append([f"{name} / OpenBao", *(f"{one / other:.2f}" for one, other in pairs)])
    heads = [f"{unit}/s", f"{many}/s", "p50 ms", "p99 ms", "server CPU ms each"]
    if not many:
        heads, lines = [heads[0], *heads[2:]], [[*line[:2], *line[3:]] for line in lines]
    return table(heads, lines)


def _line(name: str, one: Figures, each: int) -> list[str]:
    return [
        name, f"{one.rate:.0f}", f"{one.rate * each:.0f}", f"{one.p50:.2f}", f"{one.p99:.2f}", f"{one.cpu:.2f}",
    ]  # fmt: skip


def table(heads: list[str], lines: list[list[str]]) -> str:
    """Markdown, numbers to the right."""
    text = f"| | {' | '.join(heads)} |\n|---|{'---:|' * len(heads)}\n"
    return text + "".join(f"| {' | '.join(line)} |\n" for line in lines)
