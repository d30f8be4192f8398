"""What a new chain's first record says of the chains before it (docs/audit-format.md).

The folder is not believed: somebody who can write there could have put anything in. A chain is named only as far as it
is vouched for, by a head that the audit key has signed or by this very process, which wrote it; what lies beyond that
is said as it was found, so that it can be neither cut nor added to afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from broker.core.entries import MAX_RECORD_BYTES
from broker.store.chain import FILE, Tail
from broker.store.private import open_regular

BLOCK = 1 << 16

NO_RECORD = -1
"""The sequence of a last line that is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a chain's files end."""

    sequence: int  # of the last whole line; 0 when there is none, ``NO_RECORD`` when it is no record
    hash: str  # of that line
    torn: int = 0  # bytes after it
    torn_hash: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Former:
    """``strays``: later chains of the replica that are in the folder, and that nothing vouches for."""

    vouched: Tail | None = None
    end: End | None = None  # None: no file of the chain is there
    strays: int = 0

    @property
    def facts(self) -> dict[str, str | int]:
        """As the first record of the next chain has them."""
        found: dict[str, str | int] = {"former_strays": self.strays}
        if self.vouched is not None:
            found["former_chain"] = self.vouched.chain
            found["former_sequence"] = self.vouched.sequence
            found["former_hash"] = self.vouched.hash
        if self.end is not None:
            found["former_end"], found["former_end_hash"] = self.end.sequence, self.end.hash
        if self.end is not None and self.end.torn:
            found["former_torn"], found["former_torn_hash"] = self.end.torn, self.end.torn_hash
        return found

    @property
    def doubts(self) -> list[str]:
        """What somebody should look into, a sentence each."""
        said = []
        if self.vouched is not None and self.end is not None:
            name, end = self.vouched.chain, self.end
            if end.sequence < self.vouched.sequence:
                said.append(f"The audit chain {name} is signed up to record {self.vouched.sequence} and was cut.")
            if end.torn:
                said.append(f"The last line of the audit chain {name} is not whole: a crash, or a cut.")
        if self.strays:
            said.append(f"Audit chains that nothing vouches for are in the journal's folder: {self.strays}.")
        return said


def former(folder: Path, replica: str, vouched: Tail | None, end: End | None = None) -> Former:
    """What is to be said of the chain up to ``vouched``; ``end``: how it really ended, where this process knows it."""
    chains: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir(), reverse=True):
        if (found := FILE.fullmatch(path.name)) and found["replica"] == replica:
            chains.setdefault(found["chain"], []).append(path)
    strays = sum(vouched is None or chain > vouched.chain for chain in chains)
    if vouched is None:
        return Former(strays=strays)
    return Former(vouched=vouched, end=end or _end(chains.get(vouched.chain, [])), strays=strays)


def _end(newest_first: list[Path]) -> End | None:
    torn, torn_hash, seen = 0, "", False
    for path in newest_first:
        descriptor = open_regular(path)
        if descriptor is None:
            continue
        seen = True
        with os.fdopen(descriptor, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            whole = _whole(descriptor, size)
            if size > whole:
                torn, torn_hash = torn + size - whole, _hash(descriptor, whole, size)
            if whole:
                line = _last_line(descriptor, whole)
                digest = hashlib.sha256(line).hexdigest()
                return End(sequence=_sequence(line), hash=digest, torn=torn, torn_hash=torn_hash)
    return End(sequence=0, hash="", torn=torn, torn_hash=torn_hash) if seen else None


def _whole(descriptor: int, size: int) -> int:
    """Where the last whole line ends, its newline included; 0 when there is none."""
    while size:
        start = max(0, size - BLOCK)
        if (at := os.pread(descriptor, size - start, start).rfind(b"\n")) >= 0:
            return start + at + 1
        size = start
    return 0


def _last_line(descriptor: int, end: int) -> bytes:
    """The line that ends there, without its newline; of one that is too long for a record, its last bytes."""
    start = max(0, end - 2 * MAX_RECORD_BYTES - 2)
    return os.pread(descriptor, end - 1 - start, start).rpartition(b"\n")[2]


def _hash(descriptor: int, start: int, end: int) -> str:
    digest = hashlib.sha256()
    while start < end and (block := os.pread(descriptor, min(BLOCK, end - start), start)):
        digest.update(block)
        start += len(block)
    return digest.hexdigest()


def _sequence(line: bytes) -> int:
    """The line's place in its chain; ``NO_RECORD`` for a line that is no record any more."""
    try:
        found = json.loads(line)["seq"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return NO_RECORD
    return found if type(found) is int and found > 0 else NO_RECORD
