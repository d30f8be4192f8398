"""The inventory of keys: each with its version in force, schedule, last use and copies.

What is not wanted is left out before a page is cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

from broker.core.amiss import no_key
from broker.core.call import Call
from broker.core.errors import BrokerError
from broker.core.keys.phases import phase_of
from broker.core.keys.refs import ref
from broker.core.kinds import KeyState, Phase, VersionState
from broker.core.model import Import, Key, KeyUsed, KeyVersion
from broker.core.names import check_labels, check_name, check_owner
from broker.core.page import Page
from broker.core.policy.guard import BROKER, Guard, of_key, of_unknown_key
from broker.core.ports import Hsm, Now, Store
from broker.core.records import key_of
from broker.core.report import Origin
from broker.core.schedule import KeySchedule
from broker.core.schedules.standing import NO_SCHEDULE, Standing, standing

CHUNK = 500
"""Keys that are looked at at a time, where not all of them are wanted."""

SCANNED = 10_000
"""Keys that are looked at for one page, however few of them are wanted or may be seen."""

MOST_COPIES = 5_000
"""Copies on one page, which is cut behind the key with which it has so many: an answer has a size."""

BESIDE = 1000
"""Rows that are read at a time of what stands beside keys."""

FEW = 10
"""Keys whose rows are read one by one: between them there may be the rows of thousands."""

EVERY: Mapping[str, str] = MappingProxyType({})

B = TypeVar("B", KeyVersion, KeySchedule, KeyUsed, Import)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which keys are wanted; what is empty does not matter. ``target``: that have or may have a copy there."""

    labels: Mapping[str, str] = field(default_factory=dict)
    state: KeyState | None = None
    owner: str = ""
    target: str = ""
    overdue: bool = False
    held: bool = False
    compromised: bool = False

    @property
    def wants_all(self) -> bool:
        """Whether every key is wanted."""
        asked = (self.labels, self.state, self.owner, self.target, self.overdue, self.held, self.compromised)
        return not any(asked)

    def by_itself(self, key: Key) -> bool:
        """Whether a key is wanted, as far as its own row tells."""
        return self.owner in ("", key.owner) and self.labels.items() <= key.labels.items()


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A key and what stands beside it."""

    key: Key
    primary: KeyVersion | None
    schedule: KeySchedule | None
    used: KeyUsed | None
    copies: Sequence[Import]
    standing: Standing = NO_SCHEDULE

    @property
    def phase(self) -> Phase | None:
        """Of the version in force."""
        return phase_of(self.key, self.primary) if self.primary else None


class Inventory:
    """The part of KeyService that shows keys. Permission first."""

    def __init__(self, store: Store, hsm: Hsm, guard: Guard, now: Now) -> None:
        self._store = store
        self._hsm = hsm
        self._guard = guard
        self._now = now

    def get(self, call: Call, name: str) -> Entry:
        """One key; NotFound ``KEY_NOT_FOUND`` for those who may know."""
        key = self._store.get(Key, check_name(name, "key"))
        self._guard.check(call, of_key(key) if key else of_unknown_key(name))
        if key is None:
            raise no_key(name)
        return self._joined([key])[0]

    @property
    def token_serial(self) -> str:
        """Of the token that the keys are in."""
        return self._hsm.report().token_serial

    def origin(self, entry: Entry) -> tuple[Origin | None, str]:
        """What the token says of the version in force, or the reason why that is not known."""
        if entry.primary is None or entry.primary.state is not VersionState.ENABLED:
            return None, ""
        try:
            return self._hsm.origin(ref(entry.key, entry.primary)), ""
        except BrokerError as refusal:
            return None, refusal.reason

    def page(self, call: Call, wanted: Filter, after: tuple[str | int, ...], limit: int) -> Page[Entry]:
        """Keys by name, those that are wanted and that the caller may get.

        It is full unless it is the last one, ``SCANNED`` keys were looked at for it, or the copies are many.
        """
        _check(wanted)
        self._guard.check(call, BROKER)
        size, scanned, keys = limit if wanted.wants_all else CHUNK, 0, list[Key]()
        while True:
            rows = self._keys(wanted, after, size)
            keys += self._chosen(call, wanted, rows)
            scanned += size
            ended = len(rows) < size
            if ended or wanted.wants_all or len(keys) >= limit or scanned >= SCANNED:
                break
            after = (rows[-1].name,)
        items, copies = self._joined(keys[:limit]), 0
        for place, entry in enumerate(items[:-1], 1):
            copies += len(entry.copies)
            if copies >= MOST_COPIES:
                return Page(items=items[:place], next=(entry.key.name,))
        if len(keys) > limit:
            return Page(items=items, next=(keys[limit - 1].name,))
        return Page(items=items, next=() if ended else (rows[-1].name,))

    def _keys(self, wanted: Filter, after: tuple[str | int, ...], limit: int) -> list[Key]:
        where = {"state": wanted.state.value} if wanted.state else {}
        return self._store.page(Key, after=after, limit=limit, where=where, sound_only=True)

    def _chosen(self, call: Call, wanted: Filter, rows: list[Key]) -> list[Key]:
        """Those that are wanted and may be seen; what stands beside a key is read only where that decides."""
        keys = [row for row in rows if wanted.by_itself(row)]
        if wanted.target:
            there = {row.key for row in self._beside(Import, keys, {"target": wanted.target}) if row.may_be_there}
            keys = [key for key in keys if key.name in there]
        if wanted.compromised:
            enabled = [key for key in keys if key.state is KeyState.ENABLED]
            keys = [entry.key for entry in self._joined(enabled) if entry.phase is Phase.COMPROMISED]
        if wanted.overdue:
            now = self._now()
            due = {row.key for row in self._beside(KeySchedule, keys) if row.next_at < now}
            late = self._joined([key for key in keys if key.name in due])
            keys = [entry.key for entry in late if entry.standing.overdue]
        if wanted.held:
            held = {row.key for row in self._beside(KeySchedule, keys) if row.is_held}
            keys = [key for key in keys if key.name in held]
        return [key for key in keys if self._guard.shows(call.principal, "GetKey", of_key(key))]

    def _joined(self, keys: list[Key]) -> list[Entry]:
        """The keys, in order of their names, with what stands beside them, in a few reads for all of them."""
        primary = {key.name: key.primary for key in keys}
        versions = {row.key: row for row in self._beside(KeyVersion, keys) if row.number == primary[row.key]}
        schedules = {row.key: row for row in self._beside(KeySchedule, keys)}
        uses = {row.key: row for row in self._beside(KeyUsed, keys)}
        copies: dict[str, list[Import]] = {}
        for row in self._beside(Import, keys):
            copies.setdefault(row.key, []).append(row)
        return [
            self._entry(key, versions.get(key.name), schedules.get(key.name), uses.get(key.name), copies)
            for key in keys
        ]

    def _entry(
        self,
        key: Key,
        primary: KeyVersion | None,
        schedule: KeySchedule | None,
        used: KeyUsed | None,
        copies: Mapping[str, list[Import]],
    ) -> Entry:
        return Entry(
            key=key,
            primary=primary,
            schedule=schedule,
            used=used,
            copies=copies.get(key.name, ()),
            standing=standing(key, schedule, primary, self._now()),
        )

    def _beside(self, kind: type[B], keys: list[Key], where: Mapping[str, str] = EVERY) -> Iterator[B]:
        """The rows of these keys, which are in order, of a kind whose primary key begins with the key's name."""
        names = [key.name for key in keys]
        if len(names) <= FEW:
            for name in names:
                yield from self._of(kind, name, where)
            return
        wanted, after = set(names), (names[0], *_BEFORE[kind])
        if not _BEFORE[kind]:  # the name is all of the primary key, and a page begins behind it
            yield from self._of(kind, names[0], where)
        size = min(BESIDE, len(names) * (3 if _BEFORE[kind] else 1))  # what is read behind the last key is for nothing
        while True:
            rows = self._store.page(kind, after=after, limit=size, where=where, sound_only=True)
            yield from (row for row in rows if row.key in wanted)
            if len(rows) < size or rows[-1].key > names[-1]:
                return
            after = key_of(rows[-1])

    def _of(self, kind: type[B], name: str, where: Mapping[str, str]) -> Iterator[B]:
        """The rows of one key."""
        if not _BEFORE[kind]:
            yield from (row for row in self._store.page(kind, begins=name, limit=1, sound_only=True) if row.key == name)
            return
        after: tuple[str | int, ...] = ()
        while rows := self._store.page(kind, under=(name,), after=after, limit=BESIDE, where=where, sound_only=True):
            yield from rows
            if len(rows) < BESIDE:
                return
            after = key_of(rows[-1])


_BEFORE: Mapping[type[Any], tuple[str | int, ...]] = MappingProxyType(
    {KeyVersion: (0,), Import: (0, "", ""), KeySchedule: (), KeyUsed: ()}
)
"""What comes, behind the name of a key, before the rest of the primary key of its first row."""


def _check(wanted: Filter) -> None:
    """InvalidRequest for what no key can have."""
    check_labels(dict(wanted.labels))
    if wanted.owner:
        check_owner(wanted.owner)
    if wanted.target:
        check_name(wanted.target, "target")
