"""Looks at every row of the database: whether each is genuine, and whether all together are what brokers left.

One reading of the database as of one moment. If the sums are right, every row is the newest one, and the floors are
learnt from it. If not, the tables in doubt are read once more, as of the same moment, to find the rows by what this
process and the journals in its folder know: those that were put back, removed, or put in again. They are refused from
then on, one by one. What nobody can name, because another host's broker changed it or the journal is gone, is a finding
without a name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select

from broker.core.errors import WrongState
from broker.core.ports import RowFinding
from broker.core.reasons import Reason
from broker.core.records import RECORDS
from broker.store.authentic import MEND_ROW, Rows
from broker.store.config import StoreConfig
from broker.store.database import Database, Stream
from broker.store.floors import Floors
from broker.store.ledger import MODULUS, SLOTS, SUMMED, Ledger, Sums, genuine, restored, unpack
from broker.store.marks import UNTOLD, Mark, Told, behind, history, newest, word
from broker.store.rows import NAMES, PLACES, key_in, rank_of
from broker.store.tables import TABLES

ALTERED, PUT_BACK, CHANGED, REMOVED, PUT_IN = "altered", "put back", "exchanged", "removed", "put in again"
UNNAMED = "not as brokers left it"

Key = tuple[str | int, ...]

ALL = tuple(NAMES)
EVERYTHING = {kind: select(TABLES[kind]) for kind in ALL}
"""Made once: a statement that is made anew is compiled anew, which takes longer than to read a small table."""


class Inspection:
    """Looks at one database, at the start and again and again."""

    def __init__(self, database: Database, rows: Rows, floors: Floors, ledger: Ledger, config: StoreConfig) -> None:
        self._database = database
        self._rows = rows
        self._floors = floors
        self._ledger = ledger
        self._config = config

    def marks(self) -> list[Mark]:
        """How far this process, and those before it, had come by the journal."""
        return newest(self._config.journal, self._config.replica, self._ledger.owner, self._rows)

    def begin(self, *, accept: bool) -> list[RowFinding]:
        """Look for the first time. ``accept``: what is there is taken as it is, once the ledger is ``making_good``."""
        found, findings = self._look()
        own = {slot: count for (owner, slot), count in found.reached.items() if owner == self._ledger.owner}
        self._ledger.learn(own.items())
        if accept:
            self._ledger.owing = found.lack()
            self._ledger.behind = behind(self._config.journal, found.reached, self._rows)
            return findings
        if any(not self._ledger.has(own, mark.certain) for mark in self.marks()):
            raise restored()
        if unnamed := sorted({one.table for one in findings if not one.name}):
            raise WrongState(
                Reason.STORE_ALTERED,
                f"Rows of {', '.join(unnamed)} were put back, removed or put in by somebody else, and the journal here "
                "does not say which: put the newest database back, or run `broker accept-restore`, which takes them as "
                "they are and ends all sessions.",
            )
        return findings

    def again(self, tables: Collection[str]) -> list[RowFinding]:
        """Look once more, and learn what others have changed."""
        return self._look([kind for kind, name in NAMES.items() if name in tables] if tables else ALL)[1]

    def _look(self, kinds: Sequence[type[Any]] = ALL) -> tuple[Tally, list[RowFinding]]:
        with self._database.snapshot() as stream:
            found = tally(stream, self._rows, kinds)
            if found.doubtful or found.forged:
                return found, explain(stream, found, self._rows, self._floors, self._history)
        self._floors.raise_to(found.newest)
        return found, []

    def _history(self, reached: Mapping[tuple[str, int], int]) -> Mapping[str, Told]:
        return history(self._config.journal, reached)


@dataclass(slots=True)
class Tally:
    """What one reading found. ``reached``: of each process's slots, how far it is in the database."""

    kinds: Sequence[type[Any]]  # that were looked at
    sums: Sums = field(default_factory=dict)
    ledger: Sums = field(default_factory=dict)
    reached: dict[tuple[str, int], int] = field(default_factory=dict)
    newest: list[tuple[type[Any], Key, int]] = field(default_factory=list)  # revisions, for the floors
    forged: list[tuple[type[Any], Key]] = field(default_factory=list)

    @property
    def doubtful(self) -> list[type[Any]]:
        """Tables whose sum is not that of the ledger."""
        return list(self.lack())

    @property
    def _summed(self) -> list[type[Any]]:
        return [kind for kind in self.kinds if kind in SUMMED]

    def lack(self) -> Sums:
        """What has to be added to the ledger's sums for them to be those of the tables."""
        differences = ((kind, (self.sums.get(kind, 0) - self.ledger.get(kind, 0)) % MODULUS) for kind in self._summed)
        return {kind: lack for kind, lack in differences if lack}


def told(findings: Sequence[RowFinding]) -> str:
    """One sentence for people."""
    some = ", ".join(f"{one.table}{one.name and '/'}{one.name} ({one.how})" for one in findings[:5])
    more = f" and {len(findings) - 5} more" if len(findings) > 5 else ""
    return (
        f"{len(findings)} row(s) of the database were changed by somebody else: {some}{more}; they are refused. For "
        f"each, {MEND_ROW}."
    )


def tally(stream: Stream, rows: Rows, kinds: Sequence[type[Any]] = ALL) -> Tally:
    """Look at all rows of these tables in one snapshot."""
    found = Tally(kinds)
    for row in stream(SLOTS):
        if genuine(rows, row):
            found.reached[row[0], row[1]] = row[2]
            for kind, weight in unpack(row[3], rows).items():
                found.ledger[kind] = (found.ledger.get(kind, 0) + weight) % MODULUS
    for kind in kinds:
        for key, row in _all(stream, kind):
            if not rows.genuine(kind, row):
                found.forged.append((kind, key))
                continue
            found.sums[kind] = (found.sums.get(kind, 0) + rows.weight(kind, row[-1])) % MODULUS
            if kind not in UNTOLD:
                found.newest.append((kind, key, rank_of(kind, row)))
    return found


def explain(
    stream: Stream,
    found: Tally,
    rows: Rows,
    floors: Floors,
    history: Callable[[Mapping[tuple[str, int], int]], Mapping[str, Told]],
) -> list[RowFinding]:
    """What is wrong, row by row, in the snapshot of ``found``; the floors are raised so that what is named is refused.

    ``history``: what the journals say, given how far each slot is in the database.
    """
    findings = [RowFinding(NAMES[kind], _shown(key), ALTERED) for kind, key in found.forged]
    if not (doubtful := found.doubtful):
        return findings
    told = history(found.reached)
    for kind in doubtful:
        named, macs, strays = _explain(stream, kind, rows, floors, told)
        findings += named
        wanted = found.ledger.get(kind, 0)
        if wanted not in (_sum(rows, kind, macs), _sum(rows, kind, macs | strays)):
            findings.append(RowFinding(NAMES[kind], "", UNNAMED))
    return findings


def _sum(rows: Rows, kind: type[Any], macs: set[bytes]) -> int:
    return sum(rows.weight(kind, mac) for mac in macs) % MODULUS


def _explain(
    stream: Stream, kind: type[Any], rows: Rows, floors: Floors, told: Mapping[str, Told]
) -> tuple[list[RowFinding], set[bytes], set[bytes]]:
    """The findings of one table, the MACs of the rows that should be there, and those beside rows that nobody knows.

    If only cells of such a row were altered, the MAC beside them is still the one that was summed up; if the row was
    made up, it is not.
    """
    findings, macs, strays, seen = list[RowFinding](), set[bytes](), set[bytes](), set[str]()
    for key, row in _all(stream, kind):
        name = word(kind, key)
        seen |= {name, word(kind, key[: RECORDS[kind].former_key])}
        last, good = told.get(name), rows.genuine(kind, row)
        how = _how(kind, key, row, floors, last) if good else ALTERED
        if last and last.mac and how:
            macs.add(last.mac)
        elif not how:
            macs.add(row[-1])
        elif not good and isinstance(row[-1], bytes):
            strays.add(row[-1])
        if good and how:
            findings.append(RowFinding(NAMES[kind], _shown(key), how))
            floors.raise_to([(kind, key, rank_of(kind, row) + 1)])
    for name, last in told.items():
        if name.startswith(NAMES[kind] + "/") and name not in seen and last.mac:
            findings.append(RowFinding(NAMES[kind], name.partition("/")[2], REMOVED))
            macs.add(last.mac)
            floors.removed(name)
    return findings, macs, strays


def _how(kind: type[Any], key: Key, row: Sequence[Any], floors: Floors, last: Told | None) -> str:
    """What is wrong with a genuine row; "" when nothing is known against it."""
    revision = row[PLACES[kind]["revision"]]
    if last is not None and kind not in UNTOLD:
        if last.mac is None and revision <= last.revision:
            return PUT_IN
        if last.mac is not None and revision < last.revision:
            return PUT_BACK
        if last.mac is not None and revision == last.revision and row[-1] != last.mac:
            return CHANGED
    if floors.admits(kind, key, rank_of(kind, row)):
        return ""
    return PUT_IN if floors.deleted(kind, key) else PUT_BACK


def _all(stream: Stream, kind: type[Any]) -> Iterator[tuple[Key, Sequence[Any]]]:
    for row in stream(EVERYTHING[kind]):
        yield key_in(kind, row), row


def _shown(key: Key) -> str:
    return "/".join(str(part) if isinstance(part, int) else ascii(part)[1:-1] for part in key)[:200]
