"""What the audit journal says of each change to the database: which rows, and how far the ledger has come.

Two facts of an audit entry (docs/audit-format.md): ``rows``, a word for each row that decides something, and
``ledger``. With them a broker that starts can tell whether the database went back, and which rows somebody changed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from broker.core.entries import AuditEntry
from broker.core.records import RECORDS, kinds
from broker.store.authentic import MAC_BYTES, Rows
from broker.store.chain import FILE, SUFFIX
from broker.store.lines import backwards
from broker.store.private import open_regular
from broker.store.rows import NAMES

UNTOLD = frozenset(RECORDS) - kinds("told")
"""Kinds whose rows are not named."""

WORDS = 960
"""Characters of ``rows`` in one entry; a record keeps 1024 of a text."""

NEWEST = 64
"""Marks that are looked at: those of calls that ran at the same time may stand in another order than they count."""

FILES = 8
"""Files of a replica with marks that are looked at: a start that changed nothing has left a file without."""

_PLAIN = re.compile(r"[!-~]{1,80}", re.ASCII)
_WORD = re.compile(r"([a-z_]+)/([!-~]+)@(\d{1,18})(?::([0-9a-f]{32})|(-))", re.ASCII)
_FACT = b'"ledger":"'
_TABLES = {name: kind for kind, name in NAMES.items()}


class Changed(NamedTuple):
    """One row that a transaction changed; ``before`` and ``after`` are its MACs, None where there was or is none."""

    kind: type[Any]
    key: tuple[str | int, ...]
    revision: int  # of what is there now; of what was deleted
    rank: int
    before: bytes | None
    after: bytes | None


@dataclass(frozen=True, slots=True)
class Mark:
    """How far the ledger of a process had come, as an entry says: ``slot`` is the one of the entry's own change."""

    owner: str
    slot: int
    counts: tuple[int, ...]  # of every slot: what was committed when the entry was made, and the entry's own

    def shown(self, rows: Rows) -> str:
        """As the entry has it; the MAC at its end, for somebody who can write into the folder could make up others."""
        said = self._said
        return f"{said}:{rows.mac_over('mark', said).hex()}"

    @classmethod
    def read(cls, text: str, rows: Rows) -> Mark | None:
        """What ``shown`` has made with the same key; else None."""
        mark = _mark(text)
        return mark if mark and hmac.compare_digest(text.encode(), mark.shown(rows).encode()) else None

    @property
    def _said(self) -> str:
        return f"{self.owner}:{self.slot}:{'.'.join(map(str, self.counts))}"

    @property
    def certain(self) -> dict[int, int]:
        """What the database must have: the entry's own change may have got no further than the journal."""
        return {slot: count - (slot == self.slot) for slot, count in enumerate(self.counts)}


@dataclass(frozen=True, slots=True)
class Told:
    """The last that the journal says of a row; ``mac`` None: it was deleted."""

    revision: int
    mac: bytes | None


def weights(rows: Rows, changes: Iterable[Changed]) -> dict[type[Any], int]:
    """What changes add to the sum of each table."""
    found: dict[type[Any], int] = {}
    for one in changes:
        less = rows.kept_weight(one.kind, one.before) if one.before else 0
        more = rows.kept_weight(one.kind, one.after) if one.after else 0
        found[one.kind] = found.get(one.kind, 0) + more - less
    return found


def word(kind: type[Any], key: Sequence[str | int]) -> str:
    """A row's name for the journal: its primary key, or a hash of one that is long or has spaces."""
    name = "/".join(str(part) for part in key)
    plain = _PLAIN.fullmatch(name) and not name.startswith("~")
    return f"{NAMES[kind]}/{name if plain else '~' + hashlib.sha256(ascii(tuple(key)).encode()).hexdigest()[:32]}"


def tell(
    entries: Sequence[AuditEntry], noted: Mapping[str, str | int], changes: Iterable[Changed], mark: str
) -> tuple[AuditEntry, ...]:
    """The entries of a transaction with what it changed; further ones where the rows do not fit in.

    ``noted``: facts of the first one; ``mark``: "" where nothing was changed.
    """
    chunks = list(_chunks([_said(one) for one in changes if one.kind not in UNTOLD]))
    room = [*entries, *(replace(entries[0], facts={}) for _ in range(len(chunks) - len(entries)))]
    ledger = {"ledger": mark} if mark else {}
    told: list[dict[str, str | int]] = [{"rows": chunk, **ledger} for chunk in chunks] or [{**ledger}]
    told[0] = {**noted, **told[0]}
    for place, facts in enumerate(told):
        if facts:
            room[place] = room[place].saying(facts)
    return tuple(room)


def newest(folder: Path, replica: str, owner: str, rows: Rows) -> list[Mark]:
    """The last marks of this process and those before it, of each of the replica's last files that have any.

    Of several: somebody who can write to the folder may have put in a newer file that says less.
    """
    files = (list(islice(_marks(path, rows, owner), NEWEST)) for path in reversed(journal_files(folder, replica)))
    return [mark for found in islice(filter(None, files), FILES) for mark in found]


def behind(folder: Path, reached: Mapping[tuple[str, int], int], rows: Rows) -> dict[tuple[str, int], int]:
    """The slots, of whatever process, that the database must have further than it has, and how far they had come."""
    certain, most = dict[tuple[str, int], int](), dict[tuple[str, int], int]()
    told = (Mark.read(str(_facts(line).get("ledger", "")), rows) for line in _lines(folder) if _FACT in line)
    for mark in filter(None, told):
        for slot, count in enumerate(mark.counts):
            place = mark.owner, slot
            most[place] = max(count, most.get(place, 0))
            certain[place] = max(mark.certain[slot], certain.get(place, 0))
    return {place: most[place] for place, count in certain.items() if count > reached.get(place, 0)}


def history(folder: Path, reached: Mapping[tuple[str, int], int]) -> dict[str, Told]:
    """The last that this folder's journals say of each row; changes that were not committed left out.

    ``reached``: how far each process's slots are in the database.
    """
    rows: dict[str, Told] = {}
    for line in _lines(folder):
        for name, told in _rows(line, reached):
            if (known := rows.get(name)) is None or told.revision >= known.revision or known.mac is None:
                rows[name] = told
    return rows


def journal_files(folder: Path, replica: str) -> list[Path]:
    """The files of a replica's chains, the oldest first."""
    names = {path: FILE.fullmatch(path.name) for path in (folder.iterdir() if folder.is_dir() else ())}
    return sorted(path for path, found in names.items() if found and found["replica"] == replica)


def _lines(folder: Path) -> Iterator[bytes]:
    """Of all journals of a folder, in the order of their names; what is no regular file holds up nothing."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        if (descriptor := open_regular(path)) is not None:
            with os.fdopen(descriptor, "rb") as lines:
                yield from lines


def _said(one: Changed) -> str:
    return f"{word(one.kind, one.key)}@{one.revision}{':' + one.after.hex() if one.after else '-'}"


def _chunks(words: Iterable[str]) -> Iterator[str]:
    chunk = ""
    for each in words:
        if chunk and len(chunk) + 1 + len(each) > WORDS:
            yield chunk
            chunk = ""
        chunk = f"{chunk} {each}" if chunk else each
    if chunk:
        yield chunk


def _marks(path: Path, rows: Rows, owner: str) -> Iterator[Mark]:
    wanted = _FACT + owner.encode() + b":"
    for line in backwards(path):
        if wanted in line and (found := Mark.read(str(_facts(line).get("ledger", "")), rows)):
            yield found


def _facts(line: bytes) -> Mapping[str, Any]:
    try:
        facts = json.loads(line)["facts"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _mark(text: str) -> Mark | None:
    """What it says, genuine or not."""
    try:
        owner, slot, counts, _ = text.split(":")
        mark = Mark(owner, int(slot), tuple(map(int, counts.split("."))))
    except ValueError:
        return None
    return mark if 0 <= mark.slot < len(mark.counts) else None


def _rows(line: bytes, reached: Mapping[tuple[str, int], int]) -> Iterator[tuple[str, Told]]:
    if b'"rows":"' not in line:
        return
    facts = _facts(line)
    mark = _mark(str(facts.get("ledger", "")))
    if mark and mark.counts[mark.slot] > reached.get((mark.owner, mark.slot), 0):
        return
    for said in str(facts.get("rows", "")).split(" "):
        if (found := _WORD.fullmatch(said)) and found[1] in _TABLES:
            mac = bytes.fromhex(found[4]) if found[4] else None
            yield f"{found[1]}/{found[2]}", Told(int(found[3]), mac if mac is None or len(mac) == MAC_BYTES else None)
