"""The background: a heartbeat of one round a second, and beside it the work that may take longer.

The heartbeat watches the clocks, the HSM and the store, leads or asks to lead, looks for a newer policy and signs the
audit's heads; it waits for nothing else. In the one process that leads all others it has the chores of each noun and
the operations that nobody came back for carried on in threads of their own, under the number of its leadership: one
thread a noun, and one for each place outside that is waited for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Protocol

import structlog

from broker.core.approvals.lifecycle import Approvals
from broker.core.audit.heads import Heads
from broker.core.authorities.lifecycle import Authorities
from broker.core.call import Call, background_call
from broker.core.claiming import LOOK_EVERY, Claim, claim_call
from broker.core.clock import Clock
from broker.core.drift.lifecycle import Drifts
from broker.core.errors import BrokerError, Outcome, Unavailable
from broker.core.imports.importing import Imports
from broker.core.keys.lifecycle import Keys
from broker.core.keys.use import KeyUse
from broker.core.model import Operation
from broker.core.operations.plan import HSM
from broker.core.operations.running import Operations
from broker.core.policy.documents import Policies
from broker.core.ports import HsmStatus, Store
from broker.core.reasons import Reason
from broker.core.schedules.lifecycle import Schedules
from broker.core.schedules.standing import Standing
from broker.core.secrets.lifecycle import Secrets
from broker.core.sessions.lifecycle import Sessions
from broker.errands import Errands

log = structlog.get_logger("broker")

Chore = tuple[str, Callable[[Call], None]]

Kind = tuple[str, timedelta, Callable[[], object]]
"""A kind of work: its name, how often, and what is done."""

TICK = 1.0
"""Seconds between two rounds of the background loop."""

CHECK_EVERY = timedelta(seconds=3)
SIGN_EVERY = timedelta(seconds=30)
SIGN_AFTER = 1000
CHORES_EVERY = timedelta(seconds=20)
BREATHER, LONGEST_BREATHER = 2.0, 0.03
"""How many times as long as a piece of the chores took its thread waits before the next, and how many seconds at most:
callers come first, and what is over ends all the same (P15)."""

ROOTS_EVERY = timedelta(seconds=20)
READS_EVERY = timedelta(seconds=5)
USES_EVERY = timedelta(seconds=30)
AGES_EVERY = timedelta(hours=1)
NAMED = 10
"""Things that a line of the log names; the others are counted."""
SESSIONS_EVERY = timedelta(seconds=2)
DRIFT_EVERY = timedelta(minutes=5)
"""And for the first time so long after the start, when callers and what was left half done have had their turn."""

CERTIFICATE_EVERY = timedelta(hours=6)
OWN_KEYS_EVERY = timedelta(seconds=1)
"""Shorter than ``own_work.LEAD``: everybody takes a new version before it is in force."""

OPERATIONS_EVERY = timedelta(seconds=2)
LOOK_SHARE, LONGEST_LOOK = 20, timedelta(seconds=10)
"""How many times as long as a look at all operations that wait took the next one is put off, at least: there may be
thousands, and what was found at the last look keeps their places busy meanwhile."""
FORGET_EVERY = timedelta(minutes=10)

ERRANDS_SECONDS = 2.0
"""How long the end waits for what is being done beside the heartbeat. What takes longer is done again after the next
start; a process that waited for it would be killed (``supervisor.drain``) before it has signed its last head."""


def ticks() -> timedelta:
    """What paces the loop: a time that nobody can set back, as the clock can be."""
    return timedelta(seconds=time.monotonic())


class Serving(Protocol):
    """The server, as far as the loop tells it something."""

    def set_serving(self, serving: bool) -> None:  # noqa: FBT001 (the health service's word)
        """What the health service says from now on."""


class Refreshed(Protocol):
    """What follows the rows of the broker's own keys."""

    def refresh(self) -> None:
        """Learn which versions there are, and have this host take them."""


class Parts(Protocol):
    """What the loop looks after."""

    clock: Clock
    heads: Heads
    policies: Policies
    secrets: Secrets
    sessions: Sessions
    keys: Keys
    use: KeyUse
    schedules: Schedules
    operations: Operations
    imports: Imports
    approvals: Approvals
    drifts: Drifts
    authorities: Authorities
    claim: Claim

    @property
    def own(self) -> Refreshed:
        """The keys of the broker's own, as this host has them."""

    @property
    def store(self) -> Store:
        """Where the leader is elected, and everything is kept."""

    @property
    def hsm(self) -> HsmStatus:
        """The token."""

    @property
    def server(self) -> Serving:
        """Who answers."""

    def renew_certificate(self) -> None:
        """Renew the server's certificate if it is time."""


class Loop:
    """The heartbeat, and what it sets going; what fails is logged and tried again in a later round.

    ``ticks``: what it goes by.
    """

    def __init__(self, broker: Parts, ticks: Callable[[], timedelta] = ticks) -> None:
        self._broker = broker
        self._ticks = ticks
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        start = ticks()
        self._beat: list[Kind] = [
            ("clock", CHECK_EVERY, self._look),
            ("leadership", timedelta(0), self._lead),
            ("health", CHECK_EVERY, self._check),
            ("policy", timedelta(0), broker.policies.refresh),
            ("heads", timedelta(0), self._sign),
            ("operations", OPERATIONS_EVERY, self._carry_on),
        ]
        self._beside: list[Kind] = [
            ("roots", ROOTS_EVERY, broker.secrets.refresh),
            ("reads", READS_EVERY, lambda: broker.secrets.flush_reads(self._call)),
            ("uses", USES_EVERY, lambda: broker.use.flush_uses(self._call)),
            ("token", LOOK_EVERY, lambda: broker.claim.look(claim_call(self._fence or 0, broker.clock.now))),
            ("sessions", SESSIONS_EVERY, lambda: self._do(broker.sessions.chores)),
            ("keys", CHORES_EVERY, lambda: self._do(broker.keys.chores, sure=True)),
            ("schedules", CHORES_EVERY, lambda: self._do(broker.schedules.chores, sure=True)),
            ("ages", AGES_EVERY, self._look_at_ages),
            ("imports", CHORES_EVERY, lambda: self._do(broker.imports.chores, sure=True)),
            ("drift", DRIFT_EVERY, self._watch),
            ("secrets", CHORES_EVERY, lambda: self._do(broker.secrets.chores, sure=True)),
            ("approvals", CHORES_EVERY, lambda: self._do(broker.approvals.chores)),
            ("forgetting", FORGET_EVERY, lambda: self._do(broker.operations.chores)),
            ("certificate", CERTIFICATE_EVERY, broker.renew_certificate),
            ("own keys", OWN_KEYS_EVERY, broker.own.refresh),
            ("old own keys", CHORES_EVERY, lambda: self._do(broker.authorities.chores, sure=True)),
        ]
        # Each of their own, so that targets that hang leave the chores their threads, and the token its one
        self._chores, self._errands, self._token = Errands(len(self._beside)), Errands(), Errands(1)
        self._sign_at = start
        self._signed: dict[str, int] = {}
        self._fence: int | None = None
        self._clocks = (False, False)
        self._due = {name: start for name, _, _ in (*self._beat, *self._beside)}
        self._due["drift"] += DRIFT_EVERY

    def start(self) -> None:
        """Begin; the first round is at once."""
        self._thread.start()

    def idle(self, seconds: float) -> bool:
        """Wait until nothing is being done beside the heartbeat, at most so long for each kind; whether that came."""
        return all(errands.wait(seconds) for errands in (self._chores, self._token, self._errands))

    def stop(self) -> None:
        """End after the round that is under way, and after what is being done beside it."""
        self._stop.set()
        until = time.monotonic() + ERRANDS_SECONDS
        for errands in (self._chores, self._token, self._errands):
            errands.stop(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.round()
            self._stop.wait(TICK)

    def round(self) -> None:
        """Do what is due of the heartbeat, and set going what is due beside it."""
        for name, work in self._due_of(self._beat):
            _attempt(name, work)
        for name, work in self._due_of(self._beside):
            _attempt(name, partial(self._chores.start, name, partial(_attempt, name, work)))

    def _due_of(self, listed: list[Kind]) -> Iterator[tuple[str, Callable[[], object]]]:
        for name, every, work in listed:
            if self._due[name] <= self._ticks():
                self._due[name] = self._ticks() + every
                yield name, work

    def _look(self) -> None:
        """Hold the clocks against each other, and say when that comes out another way than before."""
        clock = self._broker.clock
        clock.look(self._broker.store.clock)
        told = (clock.in_doubt, bool(clock.trouble))
        if told != self._clocks:
            self._clocks = told
            if clock.trouble:
                log.warning("the clocks differ", sentence=clock.trouble)
            else:
                log.info("the clocks agree again")

    def _check(self) -> None:
        try:
            self._broker.hsm.check()
            self._broker.store.check()
            self._broker.clock.check()
        except BaseException:
            self._broker.server.set_serving(False)
            raise
        self._broker.server.set_serving(True)

    def _sign(self) -> None:
        """A head at least every 30 s or 1,000 records of a chain that moves; at once of one that has none yet."""
        moved = self._broker.store.heads()
        new = any(head.chain not in self._signed for head in moved)
        many = any(head.sequence - self._signed.get(head.chain, 0) >= SIGN_AFTER for head in moved)
        if many or new or (moved and self._sign_at <= self._ticks()):
            self._sign_at = self._ticks() + SIGN_EVERY
            self._signed |= {head.chain: head.sequence for head in self._broker.heads.sign_due()}

    def _lead(self) -> int | None:
        """Ask to lead, or to go on leading; done so often that the leadership lapses only while this thread hangs.

        Whose time is in doubt asks no more: the server gives the leadership to another (``Waits.silence``).
        """
        if self._broker.clock.in_doubt:
            self._note_leadership(None)
            return None
        try:
            fence = self._broker.store.lead()
        except BaseException:
            self._note_leadership(None)
            raise
        self._note_leadership(fence)
        return fence

    def _note_leadership(self, fence: int | None) -> None:
        if fence != self._fence:
            self._fence = fence
            log.info("leads the shared work" if fence else "leads no more", fence=fence or 0)

    def _carry_on(self) -> None:
        """Have the operations carried on that nobody came back for, at each place outside in a thread of its own."""
        if self._fence is None:
            return
        begun = self._ticks()
        due = self._broker.operations.due()
        rest = min(LOOK_SHARE * (self._ticks() - begun), LONGEST_LOOK)
        self._due["operations"] = max(self._due["operations"], self._ticks() + rest)
        for place, rows in due.items():
            errands = self._token if place == HSM else self._errands
            errands.start(place, partial(self._carry_on_at, rows))

    def _carry_on_at(self, rows: list[Operation]) -> None:
        """A place that is away is asked once in a round, and by another operation in the next one."""
        for row in rows:
            fence = self._fence
            if fence is None or self._stop.is_set():
                return
            if not _attempt(row.subject, partial(self._carried_on, row, fence)):
                return

    def _carried_on(self, row: Operation, fence: int) -> None:
        """One attempt; a line at error level for as long as it cannot go on. Raises when the place is away."""
        self._broker.store.check()  # nothing is done on a database that has gone back since the last look
        call = self._call(row.subject, fence)
        refusal = self._broker.operations.carry_on(call, row)
        if refusal is None:
            return
        alarm = self._broker.operations.alarm(replace(row, failure=refusal.reason))
        log.error(alarm, kind=row.kind, subject=row.subject, reason=refusal.reason)
        if isinstance(refusal, Unavailable) or isinstance(refusal.__cause__, Unavailable):
            raise refusal

    def _look_at_ages(self) -> None:
        """In the leader: say which keys and secrets are overdue or soon due, and mend what a clock has set astray."""
        if self._fence is None:
            return
        keys = list(self._broker.schedules.late())
        _tell_late("keys", [(one.key, one.standing, one.failure) for one in keys])
        _tell_late("secrets", [(name, standing, "") for name, standing in self._broker.secrets.late()])
        self._do(self._broker.schedules.stepped, sure=True)

    def _watch(self) -> None:
        """Have the places looked at that are due, and say what the looks have found, each finding once."""
        self._do(self._broker.drifts.chores)
        for place, shown in self._broker.drifts.news() if self._fence is not None else ():
            one = shown.finding
            what = {"key": one.key, "version": one.version, "remote_name": one.remote_name}
            log.error("a place is not as the record says", place=place, drift=one.drift, **what, repair=shown.repair)

    def _do(self, chores: Callable[[], Iterable[Chore]], *, sure: bool = False) -> None:
        """The shared work, in the one process that leads; each piece is written under the leader's number.

        ``sure``: nothing is begun on a database that has gone back since the last look, for it may destroy keys.
        """
        if self._fence is None:
            return
        for resource, work in chores():
            fence = self._fence
            if fence is None or self._stop.is_set():
                return
            if sure:
                self._broker.store.check()
            call, begun = self._call(resource, fence), self._ticks()
            if not _attempt(resource, partial(work, call)) and not call.closed:
                self._broker.store.record(call.outcome(Outcome.UNAVAILABLE, Reason.CHORE_FAILED))
            self._stop.wait(min(BREATHER * (self._ticks() - begun).total_seconds(), LONGEST_BREATHER))

    def _call(self, resource: str, fence: int = 0) -> Call:
        return background_call(resource, fence, self._broker.clock.now)


def _tell_late(what: str, found: list[tuple[str, Standing, str]]) -> None:
    """One line for all that is overdue, with the reasons that are known, and one for all that will be soon."""
    for said, some in (
        ("something is overdue", [(name, failure) for name, one, failure in found if one.overdue]),
        (
            "keys are not rotated for want of approvals: set their schedules anew",
            [(name, "") for name, _, failure in found if failure == Reason.APPROVAL_REQUIRED],
        ),
        ("something is due soon", [(name, failure) for name, one, failure in found if one.soon]),
    ):
        if some:
            named = ", ".join(f"{name} ({failure})" if failure else name for name, failure in some[:NAMED])
            log.warning(said, what=what, count=len(some), names=named)


def _attempt(name: str, work: Callable[[], object]) -> bool:
    """Do the work; a refusal, a bug, or a library's panic costs this round's work and never the heartbeat (NT-14).

    But on a database that has gone back the broker must not go on: the thread's end is the process's.
    """
    try:
        work()
    except BrokerError as error:
        log.warning("background work failed", work=name, reason=error.reason, sentence=error.message)
        if error.reason == Reason.STORE_RESTORED:
            raise
    except BaseException as error:  # noqa: BLE001 (the loop must outlive a bug; its text may hold anything, so it is not logged)
        log.error("background work broke", work=name, error=type(error).__name__)  # noqa: TRY400
    else:
        return True
    return False
