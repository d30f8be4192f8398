"""Tells heads that the audit key has signed, in whichever of its versions, from all others."""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from broker.core.audit.handover import BY_SUCCESSOR, related
from broker.core.audit.heads import signed_by
from broker.core.model import AuditHead
from broker.store.chain import FILE
from broker.store.restored import Genuine

MARK = f'"{BY_SUCCESSOR}":"'.encode()
"""In no line of a journal but those of hand-overs: a quotation mark within a value is escaped."""


def genuine_by(keys: Callable[[], set[bytes]], journal: Path) -> Genuine:
    """By the audit keys that are known, asked for when the first head is: ``init`` makes the key late.

    Of a head that none of them has signed, the hand-overs in the journal are asked whether they lead to another one:
    the folder of certificates may be older than the journal.
    """
    known: set[bytes] = set()
    asked = False

    def genuine(head: AuditHead) -> bool:
        nonlocal known, asked
        known = known or keys()
        if not known:
            return False
        if signed_by(*known)(head):
            return True
        if not asked:
            asked = True
            known = related(known, handovers(journal))
            return signed_by(*known)(head)
        return False

    return genuine


def handovers(journal: Path) -> Iterator[Mapping[str, str]]:
    """Whatever in the journals says that it is a hand-over; ``related`` believes those that prove it."""
    for path in sorted(journal.iterdir()) if journal.is_dir() else ():
        if FILE.fullmatch(path.name) and path.stat().st_size:
            yield from _of_one(path)


def _of_one(path: Path) -> Iterator[Mapping[str, str]]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(MARK)
        while at >= 0:
            start, end = content.rfind(b"\n", 0, at) + 1, content.find(b"\n", at)
            end = len(content) if end < 0 else end
            if (found := _facts(content[start:end])) is not None:
                yield found
            at = content.find(MARK, end)


def _facts(line: bytes) -> Mapping[str, str] | None:
    try:
        facts = json.loads(line)["facts"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return facts if isinstance(facts, dict) else None
