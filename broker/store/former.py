"""Finds the last record of the chain that this replica wrote before, for the new chain's first record to name."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

from broker.core.audit import MAX_RECORD_BYTES
from broker.store.chain import SUFFIX, Tail


def former(folder: Path, replica: str) -> Tail | None:
    """The last whole line of the replica's newest journal file that has one; None when there is none."""
    pattern = re.compile(rf"({re.escape(replica)}-\d{{8}}T\d{{12}}Z-[0-9a-f]{{16}})\.\d{{6}}{re.escape(SUFFIX)}")
    for path in sorted(folder.iterdir(), reverse=True):
        if (found := pattern.fullmatch(path.name)) and (line := _last_line(path)) is not None:
            return Tail(found[1], _sequence(line), hashlib.sha256(line).hexdigest(), 0)
    return None


def _last_line(path: Path) -> bytes | None:
    """The last line that ends with a newline; what a crash left after it was never acknowledged."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2 * MAX_RECORD_BYTES - 2))
        whole, newline, _ = file.read().rpartition(b"\n")
        return whole.rpartition(b"\n")[2] if newline else None


def _sequence(line: bytes) -> int:
    """The line's place in its chain; -1 for a line that is no record any more."""
    try:
        found = json.loads(line)["seq"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return -1
    return found if type(found) is int else -1
