"""The lines of a journal file, from its end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from broker.store.private import open_regular

BLOCK = 1 << 20


def backwards(path: Path) -> Iterator[bytes]:
    """Whole lines, the last one first; what a crash left after the last newline is none."""
    descriptor = open_regular(path)
    if descriptor is None:
        return
    try:
        yield from _backwards(descriptor)
    finally:
        os.close(descriptor)


def _backwards(descriptor: int) -> Iterator[bytes]:
    start, torn, rest = os.fstat(descriptor).st_size, True, b""
    while start > 0:
        end, start = start, max(0, start - BLOCK)
        rest, *lines = (os.pread(descriptor, end - start, start) + rest).split(b"\n")
        if torn and lines:
            del lines[-1]
            torn = False
        yield from reversed(lines)
    if not torn:
        yield rest
