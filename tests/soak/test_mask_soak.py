"""The long form of the masking proof: ten thousand values by real programs, a gigabyte of ordinary output."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

import pytest
from broker_cli.mask import Masker

from tests.unit.run import encoders
from tests.unit.run.test_mask_encodings import ACCOUNT, faults

pytestmark = pytest.mark.soak

VALUES = 10_000
GIGABYTE = 1 << 30
LICENSE = Path(__file__).parents[2] / "LICENSE"
PIECE = 64 * 1024
TOKENS = [b"kQ9+zR/7pLmN+x2Vb8T/0wYcE5aHj3Gd==", b"ghp_16C7e42F292c6912E7710c838347Ae178B4a"]
SHORT_ONES = [b"hunter2-db-pw", b"app_user", json.dumps(ACCOUNT).encode()]


@pytest.mark.parametrize("name", [*encoders.ENCODERS, *encoders.JAVA])
def test_P12_ten_thousand_values(name: str, tmp_path: Path) -> None:
    encode = (encoders.ENCODERS | encoders.java(tmp_path))[name]
    assert faults(name, encode, encoders.values(VALUES, seed=1), seed=2)[:5] == []


def ordinary(size: int) -> bytes:
    """Lines of builds, servers and downloads."""
    chosen = random.Random(1)  # noqa: S311  reproducible
    words = LICENSE.read_text(encoding="utf-8").split()
    makers = [
        lambda: f"2026-01-{chosen.randrange(1, 29):02}T10:{chosen.randrange(60):02}:00Z INFO {some(10)}",
        lambda: json.dumps({"level": "info", "ts": chosen.random() * 1e9, "msg": some(6), "path": f"/{some(1)}"}),
        lambda: (
            f"[ {chosen.randrange(100)}%] Building C object src/{chosen.randbytes(8).hex()}.o && gcc -O2 '{some(3)}'"
        ),
        lambda: f"Downloading https://files.example.org/packages/{chosen.randbytes(20).hex()}/a%20b?x=1&y=2 {some(4)}",
    ]

    def some(count: int) -> str:
        return " ".join(chosen.choices(words, k=count))

    lines, length = [], 0
    while length < size:
        lines.append(chosen.choices(makers, (5, 3, 3, 1))[0]() + "\n")
        length += len(lines[-1])
    return "".join(lines).encode()[:size]


@pytest.mark.parametrize(("values", "floor"), [(TOKENS, 100e6), ([*TOKENS, *SHORT_ONES], 30e6)])
def test_P23_a_gigabyte_of_ordinary_output_passes_unchanged(values: list[bytes], floor: float) -> None:
    """``floor``: bytes a second of one processor.

    Other work on the computer empties its caches, and that counts as ours: the fastest eighth of the rounds is taken.
    """
    masker = Masker(values)
    text = ordinary(16 << 20)
    taken, waiting = [], b""
    for _ in range(GIGABYTE // len(text)):
        taken.append(0.0)
        for at in range(0, len(text), PIECE):
            piece = text[at : at + PIECE]
            started = time.process_time()
            shown = masker.feed(piece)
            taken[-1] += time.process_time() - started
            waiting += piece
            assert waiting.startswith(shown)
            waiting = waiting[len(shown) :]
    assert masker.finish() == waiting
    fastest = sorted(taken)[: len(taken) // 8]
    rates = [len(text) * len(some) / sum(some) / 1e6 for some in (fastest, taken)]
    sys.stdout.write(f"{rates[0]:.0f} MB/s, {rates[1]:.0f} in all\n")
    assert rates[0] > floor / 1e6
