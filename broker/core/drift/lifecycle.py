"""Drift: the looks at each place, on demand and every so often, and the newest report of each.

    due ─ look ─▶ a report, in the place of the one before it

A look changes nothing at the place. A place that cannot be asked keeps its former report, whose age tells.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from itertools import islice

from broker.core import ports
from broker.core.amiss import no_target
from broker.core.call import Call
from broker.core.drift import at_target, in_hsm
from broker.core.drift.repairs import repair
from broker.core.errors import Outcome
from broker.core.findings import DriftReport, Finding
from broker.core.kinds import Drift
from broker.core.model import Key, Operation, Target
from broker.core.names import check_name
from broker.core.once import last_write
from broker.core.operations.plan import HSM, Plan, Step, Work
from broker.core.operations.running import Operations
from broker.core.page import Page
from broker.core.policy import guard
from broker.core.policy.guard import BROKER, Guard
from broker.core.ports import Write
from broker.core.reasons import Reason
from broker.core.records import key_of
from broker.core.targets.slots import Slots

PATIENCE = timedelta(minutes=10)
LONGEST_PAUSE = timedelta(minutes=10)
MOST = 1000
"""Findings of a report; what is beyond them is found once these are mended."""

TOLD = 100
"""New findings that a look writes into the audit by name."""

LOOKED_AT = ", looked at"
"""Ends the place of such an operation: it may take long, and what else waits for that place is not to wait for it."""

BATCH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A finding, and what mends it."""

    finding: Finding
    repair: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A report, with those of its findings that the caller may see."""

    report: DriftReport
    findings: tuple[Shown, ...]

    @property
    def target(self) -> str:
        """The target that was looked at; "" for the HSM."""
        return "" if self.report.place == HSM else self.report.place


class Drifts:
    """The noun behind DriftService. ``every``: how often each place is looked at by itself; None: never."""

    def __init__(
        self,
        store: ports.Store,
        hsm: ports.Hsm,
        guard: Guard,
        operations: Operations,
        connect: ports.Connect,
        now: ports.Now,
        slots: Slots,
        every: timedelta | None,
    ) -> None:
        self._store = store
        self._hsm = hsm
        self._guard = guard
        self._operations = operations
        self._connect = connect
        self._now = now
        self._slots = slots
        self._every = every
        self._told: set[tuple[str, Finding]] = set()
        self._plan = operations.admit(
            Plan(
                kind="check-drift",
                steps=(Step(name="look", act=self._look, keep=self._looked),),
                patience=PATIENCE,
                place=lambda operation: _place_in(operation) + LOOKED_AT,
                longest_pause=LONGEST_PAUSE,
                alarm=lambda _: "whether a place is as the record says cannot be found out",
            )
        )

    # ---- on demand -----------------------------------------------------------------------------------------------

    def check(self, call: Call, target: str) -> Report:
        """Look at a target, or with "" at the HSM, now; what is found is kept as its newest report."""
        if not target:
            self._guard.check(call, BROKER)
            with self._slots.hold(call, HSM):
                found = list(islice(in_hsm.findings(self._store, self._hsm, self._now()), MOST))
            return self._shown(call, self._ended(call, HSM, found))
        check_name(target, "target")
        stored = self._store.get(Target, target)
        self._guard.check(call, guard.of_target(stored) if stored else guard.of_unknown_target(target))
        if stored is None:
            raise no_target(target)
        call.note(target=target)
        with self._slots.hold(call, target):
            found = list(islice(self._at(stored), MOST))
        return self._shown(call, self._ended(call, target, found))

    def page(self, call: Call, after: tuple[str | int, ...], limit: int) -> Page[Report]:
        """The newest reports of the places that there are; of their findings only those of keys the caller may get."""
        self._guard.check(call, BROKER)
        rows = self._store.page(DriftReport, after=after, limit=limit, sound_only=True)
        items = [self._shown(call, row) for row in rows if self._is_there(row.place)]
        return Page(items=items, next=(rows[-1].place,) if len(rows) == limit else ())

    def _ended(self, call: Call, place: str, found: list[Finding]) -> DriftReport:
        with last_write(self._store, call) as write:
            return self._kept(write, call, place, found)

    # ---- by itself -----------------------------------------------------------------------------------------------

    def chores(self) -> Iterator[tuple[str, Callable[[Call], None]]]:
        """A look at each place that is due, by an operation of its own; reports of gone targets are dropped."""
        for row in self._reports():
            if not self._is_there(row.place):
                yield f"target/{row.place}", partial(self._drop, row)
        for place in self._places() if self._every is not None else ():
            if self._is_due(place):
                yield _subject(place), partial(self._begin, place)

    def news(self) -> list[tuple[str, Shown]]:
        """The findings that stand and were not given by this before, with the place of each; for the log."""
        standing = {(row.place, one) for row in self._reports() if self._is_there(row.place) for one in row.findings}
        new, self._told = standing - self._told, standing
        return [(place, self._repaired(place, one)) for place, one in sorted(new, key=str)]

    def _is_due(self, place: str) -> bool:
        report, every = self._store.get(DriftReport, place), self._every
        due = report is None or (every is not None and report.checked_at + every <= self._now())
        return due and self._operations.live(self._store, _subject(place)) is None

    def _begin(self, place: str, call: Call) -> None:
        with last_write(self._store, call) as write:
            self._operations.begin(write, call, self._plan, _subject(place), abandoned=True)

    def _drop(self, row: DriftReport, call: Call) -> None:
        with last_write(self._store, call) as write:
            write.delete(row)

    def _look(self, work: Work) -> Mapping[str, str]:
        place = _place_in(work.operation)
        target = self._store.get(Target, place) if place != HSM else None
        if place != HSM and target is None:
            return {}  # it was removed meanwhile
        looked = self._at(target) if target else in_hsm.findings(self._store, self._hsm, self._now())
        return {"found": _written(islice(looked, MOST))}

    def _looked(self, write: Write, work: Work) -> None:
        if "found" in work.memory:
            self._kept(write, work.call, _place_in(work.operation), _read(work.memory["found"], self._now()))

    # ---- both ----------------------------------------------------------------------------------------------------

    def _at(self, target: Target) -> Iterator[Finding]:
        port = self._connect(target.name, target.kind, target.settings)
        return at_target.Look(self._store, self._hsm, port, target, self._now()).findings()

    def _kept(self, write: Write, call: Call, place: str, found: list[Finding]) -> DriftReport:
        """The new report; what stood in the former one keeps its time, what is new is told to the audit."""
        former = write.get(DriftReport, place)
        since = {_identity(one): one.found_at for one in (former.findings if former else ())}
        kept = tuple(replace(one, found_at=since.get(_identity(one), one.found_at)) for one in found)
        for one in [each for each in kept if _identity(each) not in since][:TOLD]:
            call_facts = {"state": one.drift.value, "version": one.version, "remote_name": one.remote_name}
            entry = call.outcome(Outcome.FAILED_PRECONDITION, Reason.DRIFT_FOUND)
            subject = f"key/{one.key}," if one.key else ""
            where = "hsm" if place == HSM else f"target/{place}"
            write.also(replace(entry, resource=f"{subject}{where}", facts={**entry.facts, **call_facts}))
        write.note(count=len(kept))
        report = DriftReport(place=place, checked_at=self._now(), findings=kept)
        if former is not None:
            return write.replace(former, replace(report, revision=former.revision))
        write.add(report)
        return report

    def _shown(self, call: Call, report: DriftReport) -> Report:
        keys = {one.key for one in report.findings if one.key}
        visible = {"", *(name for name in keys if self._may_get(call, name))}
        shown = tuple(self._repaired(report.place, one) for one in report.findings if one.key in visible)
        return Report(report=report, findings=shown)

    def _repaired(self, place: str, finding: Finding) -> Shown:
        key = self._store.get(Key, finding.key) if finding.key else None
        return Shown(finding=finding, repair=repair(place, finding, key.primary if key else 0))

    def _may_get(self, call: Call, name: str) -> bool:
        key = self._store.get(Key, name)
        return self._guard.permits(call.principal, "GetKey", guard.of_key(key) if key else guard.of_unknown_key(name))

    def _is_there(self, place: str) -> bool:
        return place == HSM or self._store.get(Target, place) is not None

    def _places(self) -> Iterator[str]:
        yield HSM
        after: tuple[str | int, ...] = ()
        while rows := self._store.page(Target, after=after, limit=BATCH, sound_only=True):
            after = key_of(rows[-1])
            yield from (row.name for row in rows)

    def _reports(self) -> Iterator[DriftReport]:
        after: tuple[str | int, ...] = ()
        while rows := self._store.page(DriftReport, after=after, limit=BATCH, sound_only=True):
            after = key_of(rows[-1])
            yield from rows


def _subject(place: str) -> str:
    return "hsm/drift" if place == HSM else f"target/{place}/drift"


def _place_in(operation: Operation) -> str:
    parts = operation.subject.split("/")
    return HSM if parts[0] == "hsm" else parts[1]


def _identity(one: Finding) -> tuple[str, int, str, str, Drift]:
    return one.key, one.version, one.remote_name, one.remote_version, one.drift


def _written(found: Iterable[Finding]) -> str:
    return json.dumps([[*_identity(one), one.detail] for one in found])


def _read(told: str, now: datetime) -> list[Finding]:
    return [
        Finding(
            key=key, version=version, remote_name=name, remote_version=remote, drift=Drift(drift), detail=detail,
            found_at=now,
        )
        for key, version, name, remote, drift, detail in json.loads(told)
    ]  # fmt: skip
