"""After a restore: whatever would be done by itself, or completed by a repetition, is held until an operator says so.

The database was restored to a moment when it was still to be done. What has come of it since, only people know: the
destruction may have been called off, the half-made key completed and in use. So a held row is in a state in which the
background loop does not look for it and no repeated call goes on with it. ``settling`` and the calls that the states
name (``kinds``) get it out of there. The operations that were under way are closed; only those go on that take nothing
away from anybody that the record has not taken already: a sealing, what puts copies of retired versions out of use (for
a destruction that is held it does nothing), and the destruction of a key of the broker's own that has a successor in
the token. Of keys that seal themselves the wish ends: it may have been taken back since, and a sealing cannot be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from broker.core.approval import Approval
from broker.core.call import Call
from broker.core.clearance import over
from broker.core.errors import WrongState
from broker.core.kinds import ApprovalState, ImportState, KeyState, RootKeyState, ScheduleState, VersionState
from broker.core.leases.ending import BATCH, entry_of
from broker.core.model import Import, Key, KeyVersion, Operation, RootKey
from broker.core.operations.running import LIVE, closed
from broker.core.ports import Store
from broker.core.reasons import Reason
from broker.core.records import key_of
from broker.core.schedule import KeySchedule

Facts = dict[str, str | int]

HARMLESS = frozenset({"check-drift", "seal-key", "contain-key-version", "withdraw-copy", "retire-own-key"})
"""The kinds of operations that go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """Rows of ``kind`` in the state ``when``: what they become, what they are called, and what the audit says."""

    kind: type[Any]
    when: str
    becomes: Callable[[Any, datetime], Any]
    resource: Callable[[Any], str]
    facts: Callable[[Any], Facts] = lambda _: {}
    fits: Callable[[Any], bool] = lambda _: True


_RULES = (
    _Rule(
        kind=Key,
        when=KeyState.DESTROY_SCHEDULED.value,
        becomes=lambda key, _: replace(key, state=KeyState.HELD, destroy_at=None, sealed_once_at=None),
        resource=lambda key: f"key/{key.name}",
        facts=lambda key: {"destroy_at": key.destroy_at.isoformat(timespec="seconds")} if key.destroy_at else {},
    ),
    _Rule(
        kind=KeyVersion,
        when=VersionState.PENDING.value,
        becomes=lambda version, _: replace(version, state=VersionState.HELD),
        resource=lambda version: f"key/{version.key}",
        facts=lambda version: {"version": version.number},
    ),
    *(
        _Rule(
            kind=Import,
            when=state.value,
            becomes=lambda row, _: replace(row, state=ImportState.HELD),
            resource=lambda row: f"key/{row.key},target/{row.target}",
            facts=lambda row: {"version": row.version, "target": row.target, "remote_name": row.remote_name},
        )
        for state in (ImportState.PENDING, ImportState.DISABLING)  # either may have been proven since
    ),
    _Rule(
        kind=RootKey,
        when=RootKeyState.PENDING.value,
        becomes=lambda root, _: replace(root, state=RootKeyState.HELD),
        resource=lambda root: f"root/{root.version}",
    ),
    _Rule(
        kind=KeySchedule,
        when=ScheduleState.ACTIVE.value,  # the key may have been rotated since, or the schedule ended
        becomes=lambda schedule, _: replace(schedule, state=ScheduleState.HELD),
        resource=lambda schedule: f"key/{schedule.key}",
    ),
)

_OPERATIONS = tuple(
    _Rule(
        kind=Operation,
        when=state.value,
        becomes=lambda operation, now: closed(operation, "RESTORED", now),
        resource=lambda operation: f"operation/{operation.subject}",
        fits=lambda operation: operation.kind not in HARMLESS,
    )
    for state in LIVE
)

_WISHES = tuple(
    _Rule(
        kind=Key,
        when=state.value,
        becomes=lambda key, _: replace(key, sealed_once_at=None),
        resource=lambda key: f"key/{key.name}",
        facts=lambda key: {"target": " ".join(key.sealed_once_at)},
        fits=lambda key: bool(key.sealed_once_at),
    )
    for state in (KeyState.ENABLED, KeyState.DISABLED)
)

_CLOSED = (
    *_OPERATIONS,
    *_WISHES,
    _Rule(
        kind=Approval,
        when=ApprovalState.OPEN.value,  # it may have been used since, or rejected
        becomes=lambda approval, now: over(approval, ApprovalState.EXPIRED, now),
        resource=lambda approval: f"approval/{approval.id}",
    ),
)
"""What ends, instead of being held."""

_OLDER_ROOTS = _Rule(
    kind=RootKey,
    when=RootKeyState.ENABLED.value,
    becomes=lambda root, _: replace(root, state=RootKeyState.KEPT),
    resource=lambda root: f"root/{root.version}",
)


class Holding:
    """Holds everything there is to hold; doing it twice is the same as once. ``make_call``: the call about a thing."""

    def __init__(self, store: Store, make_call: Callable[[str], Call]) -> None:
        self._store = store
        self._make_call = make_call

    def hold(self) -> int:
        """Hold it all, each with an audit entry of its own; how many were held."""
        for rule in _CLOSED:
            for rows in self._batches(rule):
                self._hold(rule, rows)
        return sum(self._hold(rule, rows) for rule in _RULES for rows in self._batches(rule)) + self._keep_roots()

    def unreadable(self) -> int:
        """How many rows could not be read and so are not held; nobody does anything with such a row either."""
        return sum(self._unreadable(rule) for rule in (*_RULES, *_CLOSED))

    def _unreadable(self, rule: _Rule) -> int:
        sound = sum(len(rows) for rows in self._batches(rule))
        return self._store.count(rule.kind, {"state": rule.when}) - sound

    def _keep_roots(self) -> int:
        """All but the newest: that one is destroyed only after an operator has rotated it out."""
        ready = [root for rows in self._batches(_OLDER_ROOTS) for root in rows]
        return self._hold(_OLDER_ROOTS, ready[:-1])

    def _batches(self, rule: _Rule) -> Iterator[list[Any]]:
        after: tuple[str | int, ...] = ()
        where = {"state": rule.when}
        while rows := self._store.page(rule.kind, after=after, limit=BATCH, where=where, sound_only=True):
            yield rows
            after = key_of(rows[-1])

    def _hold(self, rule: _Rule, found: list[Any]) -> int:
        rows = [row for row in found if rule.fits(row)]
        if not rows:
            return 0
        call, count = self._make_call(f"{rule.resource(rows[0]).partition('/')[0]}/*"), 0
        with self._store.write(call.outcome()) as write:
            for row in rows:
                stored = write.get(rule.kind, *key_of(row))
                if stored is not None and stored.state == rule.when and rule.fits(stored):
                    held = write.replace(stored, rule.becomes(stored, call.now()))
                    write.also(entry_of(call, rule.resource(held), state=held.state.value, **rule.facts(stored)))
                    count += 1
            write.note(count=count)
        return count


def held_work(store: Store) -> int:
    """How many things wait for an operator since a restore; root keys that are only kept are none of them."""
    states: dict[type[Any], str] = {
        Key: KeyState.HELD.value,
        KeyVersion: VersionState.HELD.value,
        Import: ImportState.HELD.value,
        RootKey: RootKeyState.HELD.value,
        KeySchedule: ScheduleState.HELD.value,
    }
    return sum(store.count(kind, {"state": state}) for kind, state in states.items())


def version_held(version: KeyVersion) -> WrongState:
    """The refusal to go on with a version that was being made when the database was restored."""
    return WrongState(
        Reason.KEY_VERSION_HELD,
        f"Version {version.number} of the key {version.key} was being made when the database was restored, and is held "
        "since; an operator keeps or discards it with `broker key settle`.",
    )
