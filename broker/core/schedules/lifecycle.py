"""Schedules: a key is rotated by itself each time its version in force has come to an age.

    ACTIVE ─▶ due ─▶ the rotation of ``key rotate``, in the name of whoever set the schedule ─▶ due anew, a period later
       └─ after a restore ─▶ HELD, until it is set again

The row says when the key is due (``next_at``), and when the background looks again (``look_at``): it lies ahead of what
is due while a rotation runs, a blackout lasts, or an attempt was refused. What is due counts from the making of the
version in force, so one that people have rotated meanwhile is due a whole period later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

from broker.core.amiss import no_key
from broker.core.behalf import who_asked
from broker.core.call import Call, on_behalf
from broker.core.errors import BrokerError, InvalidRequest, NotFound, Unavailable, WrongState
from broker.core.keys.states import USABLE, as_decided, require
from broker.core.kinds import KeyState, ScheduleState
from broker.core.model import Key, KeyVersion, Principal
from broker.core.names import check_name
from broker.core.once import last_write, once, record
from broker.core.policy.guard import Guard, of_key, of_unknown_key
from broker.core.ports import Now, Store, Write
from broker.core.reasons import Reason
from broker.core.rotations.lifecycle import ROTATE, Rotations
from broker.core.rotations.rotating import USUAL_GRACE
from broker.core.schedule import KeySchedule
from broker.core.schedules import blackouts
from broker.core.schedules.blackouts import HORIZON, Zone
from broker.core.schedules.standing import LONGEST, NO_SCHEDULE, SHORTEST, Standing, due_at, standing, usual_warning

BATCH = 100

RUNNING_PAUSE = timedelta(minutes=5)
"""Between two looks at a key that is being rotated."""
AWAY_PAUSE = timedelta(minutes=1)
"""After an attempt at which HSM or database did not answer."""
REFUSED_PAUSE = timedelta(hours=1)
"""After any other refusal, and while the key is not enabled: people have to mend it."""


Chore = tuple[str, Callable[[Call], None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How a key is to be rotated by itself. None: as is usual for such a period."""

    every: timedelta
    jitter: timedelta = timedelta(0)
    blackouts: tuple[str, ...] = ()
    warn: timedelta | None = None
    grace: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Late:
    """A key that is overdue, soon due or held up, and why it was not or will not be rotated, if that is known."""

    key: str
    standing: Standing
    failure: str


class Schedules:
    """The part of KeyService that is about rotating by itself. Permission first. ``zone``: of the host."""

    def __init__(self, store: Store, guard: Guard, rotations: Rotations, zone: Zone, now: Now) -> None:
        self._store = store
        self._guard = guard
        self._rotations = rotations
        self._zone = zone
        self._now = now

    # ---- set by people -------------------------------------------------------------------------------------------

    def set(self, call: Call, name: str, wish: Wish | None) -> tuple[Key, KeySchedule | None]:
        """Have the key rotated by itself from now on, or (None) no more; setting it anew replaces what was set.

        The caller must be permitted to rotate it wherever it is: it is done in their name.
        """
        key = self._permitted(call, name)
        if wish is None:
            self._off(call, key)
            return key, None
        require(key, USABLE)
        _check(wish)
        windows = blackouts.check(list(wish.blackouts), self._zone, self._now())
        self._rotations.check(on_behalf(call, ROTATE, call.principal), key)
        drawn = self._drawn(call, key, wish)
        schedule = self._planned(drawn, self._primary(key), windows)
        if call.validate_only:
            return key, schedule

        def change(write: Write) -> KeySchedule:
            as_decided(write, key)
            stored = write.get(KeySchedule, name)
            if stored is None:
                write.add(schedule)
                return schedule
            return write.replace(stored, schedule)

        return key, once(self._store, call, name, change, lambda write, _: write.get(KeySchedule, name) or schedule)

    def _off(self, call: Call, key: Key) -> None:
        if call.validate_only:
            return

        def change(write: Write) -> None:
            as_decided(write, key)
            stored = write.get(KeySchedule, key.name)
            if stored is not None:
                write.delete(stored)

        once(self._store, call, key.name, change, lambda _write, _receipt: None)

    def _drawn(self, call: Call, key: Key, wish: Wish) -> KeySchedule:
        grace = min(USUAL_GRACE, wish.every / 2) if wish.grace is None else wish.grace
        warn = usual_warning(wish.every) if wish.warn is None else wish.warn
        now = self._now()
        return KeySchedule(
            key=key.name,
            state=ScheduleState.ACTIVE,
            every=int(wish.every.total_seconds()),
            jitter=int(wish.jitter.total_seconds()),
            blackouts=tuple(" ".join(one.split()) for one in wish.blackouts),
            warn=int(warn.total_seconds()),
            grace=int(grace.total_seconds()),
            set_by=str(call.principal),
            version=key.primary,
            next_at=now,
            look_at=now,
            failure="",
            created_at=now,
            approvals=call.clearance.needs if call.clearance else None,
        )

    # ---- carried out by the background ---------------------------------------------------------------------------

    def chores(self) -> Iterator[Chore]:
        """The keys whose time has come: (resource, work); each stands alone and may be repeated."""
        before: list[KeySchedule] = []
        while (rows := self._store.due(KeySchedule, self._now(), limit=BATCH)) and rows != before:
            for row in rows:
                yield f"key/{row.key}", partial(self._see_to, row.key)
            before = rows  # the same again: these have failed

    def late(self) -> Iterator[Late]:
        """The keys that are overdue or soon due, and those whose schedule lacks approvals by now."""
        for row in self._all():
            near, held = row.next_at - timedelta(seconds=row.warn) <= self._now(), row.lacks_approvals
            if near or held:
                found = self._standing(row)
                if found.overdue or found.soon or held:
                    yield Late(key=row.key, standing=found, failure=row.failure)

    def _standing(self, row: KeySchedule) -> Standing:
        """A damaged row of one key holds up what is told of the others no more than its own absence would."""
        for key in self._store.page(Key, where={"name": row.key}, limit=1, sound_only=True):
            named: dict[str, str | int] = {"key": key.name, "number": key.primary}
            primary = self._store.page(KeyVersion, where=named, limit=1, sound_only=True)
            return standing(key, row, primary[0] if primary else None, self._now())
        return NO_SCHEDULE

    def stepped(self) -> Iterator[Chore]:
        """What is not as it was when a schedule was reckoned, long before it is due.

        Its time lies further ahead than any period: the clock has been set back. Or a rotation needs more approvals by
        now than the schedule was set with, or again no more than that.
        """
        for row in self._all():
            if row.state is ScheduleState.ACTIVE and (self._is_astray(row) or self._lacks(row) != row.lacks_approvals):
                yield f"key/{row.key}", partial(self._see_to, row.key)

    def _see_to(self, name: str, call: Call) -> None:
        row = self._store.get(KeySchedule, name)
        if row is None or row.state is not ScheduleState.ACTIVE:
            return
        try:
            self._look(call, row)
        except BrokerError as refusal:
            if call.closed:
                raise
            self._refused(call, row, refusal)

    def _look(self, call: Call, row: KeySchedule) -> None:
        key, now = self._store.get(Key, row.key), self._now()
        if key is None or key.state is KeyState.DESTROYED:
            self._keep(call, row, None)
            return
        windows = blackouts.parsed(row.blackouts, self._zone)
        primary = self._primary(key)
        if self._is_astray(row) or (primary is not None and primary.number != row.version):
            self._keep(call, row, self._planned(row, primary, windows))
        elif row.look_at <= now:
            self._begin(call, row, key, blackouts.opening(windows, max(row.next_at, now)) or now + REFUSED_PAUSE)
        elif self._lacks(row) != row.lacks_approvals:
            self._keep(call, row, replace(row, failure="" if row.lacks_approvals else Reason.APPROVAL_REQUIRED))

    def _begin(self, call: Call, row: KeySchedule, key: Key, opens: datetime) -> None:
        now = self._now()
        if opens > now:
            self._keep(call, row, replace(row, look_at=opens))
        elif self._rotations.is_running(key.name):
            self._keep(call, row, replace(row, look_at=now + RUNNING_PAUSE, failure=""))
        elif key.state is not KeyState.ENABLED:
            self._keep(call, row, replace(row, look_at=now + REFUSED_PAUSE, failure=Reason.KEY_STATE))
        else:
            self._rotate(call, row, key)

    def _rotate(self, call: Call, row: KeySchedule, key: Key) -> None:
        """Begin the rotation, in the name of whoever set the schedule, and as they are permitted now."""
        asked = None
        try:
            cure = f"whoever may rotate the key sets its schedule anew (`broker key schedule {key.name}`)"
            asked = on_behalf(call, ROTATE, who_asked(self._store, row.set_by, "schedule", cure))
            asked.note(scheduled_by=row.set_by)
            self._check_approvals(row, key, asked.principal)
            self._rotations.rotate(asked, key.name, timedelta(seconds=row.grace))
        except BrokerError as refusal:
            told = asked is None or asked.closed or row.failure == refusal.reason  # at an attempt before
            if asked is not None and not told:
                record(self._store, asked, asked.outcome(refusal.outcome, refusal.reason))
            self._refused(call, row, refusal)
            return
        now = self._store.get(Key, key.name) or key
        self._keep(call, row, self._after(replace(row, failure=""), now))

    def _check_approvals(self, row: KeySchedule, key: Key, principal: Principal) -> None:
        """Nobody approves in the background, so what is needed now must have been given when it was set."""
        needed, had = self._rotations.approvals(principal, key), row.approvals or 0
        if needed > had:
            raise WrongState(
                Reason.APPROVAL_REQUIRED,
                f"Rotating the key {key.name} needs {needed} approval(s) of other operators by now, and its schedule "
                f"was set with {had}; set it anew (`broker key schedule {key.name} --every TIME`), which asks for "
                "them.",
            )

    def _lacks(self, row: KeySchedule) -> bool:
        """Whether the next rotation would be refused for want of approvals; not known of who may not call now."""
        key = self._store.get(Key, row.key) if self._rotations.asks_approvals() else None
        if key is None:
            return False
        try:
            principal = who_asked(self._store, row.set_by, "schedule", "")
        except NotFound:
            return False
        return self._rotations.approvals(principal, key) > (row.approvals or 0)

    def _after(self, row: KeySchedule, key: Key) -> KeySchedule:
        """As it is once a rotation has begun: due anew if the next version is in force already."""
        if key.primary == row.version:
            return replace(row, look_at=self._now() + RUNNING_PAUSE)
        return self._planned(row, self._primary(key), blackouts.parsed(row.blackouts, self._zone))

    def _refused(self, call: Call, row: KeySchedule, refusal: BrokerError) -> None:
        pause = AWAY_PAUSE if isinstance(refusal, Unavailable) else REFUSED_PAUSE
        self._keep(call, row, replace(row, look_at=self._now() + pause, failure=refusal.reason))
        raise refusal  # for the log

    def _keep(self, call: Call, row: KeySchedule, new: KeySchedule | None) -> None:
        with last_write(self._store, call) as write:
            stored = write.get(KeySchedule, row.key)
            if stored is None or stored.revision != row.revision:
                return  # people have set it anew meanwhile
            if new is None:
                write.delete(stored)
            else:
                write.replace(stored, new)

    # ---- both ----------------------------------------------------------------------------------------------------

    def _planned(self, row: KeySchedule, primary: KeyVersion | None, windows: list[blackouts.Window]) -> KeySchedule:
        """Due a period after the making of the version in force, outside the blackouts."""
        now = self._now()
        at = due_at(row, primary, now) if primary else now + timedelta(seconds=row.every)
        next_at = blackouts.opening(windows, at) or at
        number = primary.number if primary else row.version
        return replace(row, version=number, next_at=next_at, look_at=next_at, failure="")

    def _is_astray(self, row: KeySchedule) -> bool:
        furthest = self._now() + timedelta(seconds=row.every + row.jitter) + HORIZON
        return max(row.next_at, row.look_at) > furthest

    def _primary(self, key: Key) -> KeyVersion | None:
        return self._store.get(KeyVersion, key.name, key.primary) if key.primary else None

    def _all(self) -> Iterator[KeySchedule]:
        after: tuple[str | int, ...] = ()
        while rows := self._store.page(KeySchedule, after=after, limit=BATCH * 10, sound_only=True):
            yield from rows
            after = (rows[-1].key,)

    def _permitted(self, call: Call, name: str) -> Key:
        key = self._store.get(Key, check_name(name, "key"))
        self._guard.check(call, of_key(key) if key else of_unknown_key(name))
        if key is None:
            raise no_key(name)
        return key


def _check(wish: Wish) -> None:
    """InvalidRequest ``PERIOD_OUT_OF_RANGE``, ``SCHEDULE_INVALID``."""
    if not SHORTEST <= wish.every <= LONGEST:
        raise InvalidRequest(
            Reason.PERIOD_OUT_OF_RANGE,
            f"The period of a rotation is between {SHORTEST // timedelta(hours=1)} hour and {LONGEST.days} days; "
            "`broker key schedule NAME --off` ends a schedule.",
        )
    for what, span, most in (
        ("jitter", wish.jitter, wish.every / 2),
        ("grace", wish.grace, wish.every / 2),
        ("warning", wish.warn, wish.every),
    ):
        if span is not None and not timedelta(0) <= span <= most:
            half = "half the period: else one rotation would run into the next"
            part = half if most < wish.every else "the period"
            raise InvalidRequest(
                Reason.SCHEDULE_INVALID,
                f"The {what} of a schedule is between 0 and {part}.",
            )
