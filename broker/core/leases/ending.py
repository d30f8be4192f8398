"""How sessions and leases end, by whatever cause.

The row of a session is the lock of its leases: a change that adds, ends or reads them to end them holds that row first,
and one that holds several takes them in the order of their ids. So a session never ends without a lease that was just
added, and a lease never outlives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from broker.core.call import Call
from broker.core.entries import AuditEntry
from broker.core.kinds import LeaseState, SessionState
from broker.core.model import Lease, Receipt, Record, Session, TrustRule, UsedToken
from broker.core.once import last_write
from broker.core.ports import Now, Store, Write
from broker.core.records import renewed
from broker.core.rows import readable

R = TypeVar("R", bound=Record)
T = TypeVar("T")

BATCH = 100
"""Records that a caller's revocation looks at in one piece."""

ROWS = 20
"""Rows that one transaction changes, about: every other writer waits for it (P15)."""

PIECE = 10
"""Records that one piece of background work looks at."""

STEP = 1000
"""Leases that are read at a time."""

PIECES = 100
"""Pieces of one kind in one round of the background loop."""

KEEP = timedelta(hours=1)
"""How long what has ended stays listed; the audit has it for good. Also how long a used identity token is remembered
after its end, so that a clock that is set back does not bring it back to life."""

KEEP_RECEIPTS = timedelta(hours=24)

Work = tuple[str, Callable[[Call], None]]


def part(call: Call, rpc: str = "") -> Call:
    """A call's share in one thing of several, for a decision and an audit entry of its own."""
    return Call(
        id=call.id,
        rpc=rpc or call.rpc,
        principal=call.principal,
        peer=call.peer,
        now=call.now,
        request_id=call.request_id,
        validate_only=call.validate_only,
        digest=call.digest,
        fence=call.fence,
    )


def entry_of(call: Call, resource: str, **facts: str | int) -> AuditEntry:
    """The entry of one thing that ended by a call, under the call's own decision."""
    return call.outcome_of(resource, facts)


def live(session: Session | None, now: datetime) -> bool:
    """Whether a session holds at that moment."""
    return session is not None and session.state is SessionState.ACTIVE and session.expires_at > now


def held(session: Session, rule: TrustRule | None) -> bool:
    """Whether the trust rule that opened a session is still what it was then."""
    return rule is not None and rule.revision == session.rule_revision and rule.created_at <= session.created_at


def shown(lease: Lease, session: Session | None, now: datetime) -> Lease:
    """A lease as it stands: it ends with its session if not before, even where no row says so yet (TL-03)."""
    end = min(lease.expires_at, session.expires_at) if session else lease.expires_at
    if lease.state is LeaseState.ACTIVE and (not live(session, now) or end <= now):
        return renewed(lease, state=LeaseState.EXPIRED, expires_at=end)
    return lease if end == lease.expires_at else renewed(lease, expires_at=end)


def ended_lease(lease: Lease, state: LeaseState, now: datetime) -> Lease:
    """A lease that is over, from now on at the latest: ``KEEP`` is counted from its end, however long it could be."""
    return renewed(lease, state=state, expires_at=min(lease.expires_at, now))


class Ending:
    """Ends sessions and leases, and does so by itself when their time is over."""

    def __init__(self, store: Store, now: Now) -> None:
        self._store = store
        self._now = now

    def lock(self, write: Write, session: str) -> Session | None:
        """Hold a session's row; a row that cannot be read is held all the same and counts as absent (TL-18)."""
        return readable(lambda: write.get(Session, session), None)

    def leases(self, write: Write, session: str) -> list[Lease]:
        """The active leases of a session that the caller holds.

        With a damaged row among them none are found here: they are dead with their session, and each row is put right
        when its own time comes.
        """
        return readable(lambda: self._leases(write, session), [])

    def _leases(self, write: Write, session: str) -> list[Lease]:
        found: list[Lease] = []
        where = {"session": session, "state": LeaseState.ACTIVE.value}
        while True:
            rows = write.page(Lease, after=(found[-1].id,) if found else (), limit=STEP, where=where, lock=False)
            found += rows
            if len(rows) < STEP:
                return found

    def session(self, write: Write, session: Session, leases: LeaseState) -> int:
        """End a session that the caller holds, and all its leases; how many leases those were."""
        now = self._now()
        ended = write.end_leases(session.id, leases, now)
        write.replace(session, renewed(session, state=SessionState.ENDED, expires_at=min(session.expires_at, now)))
        return ended

    def sessions(
        self, write: Write, call: Call, ids: Iterable[str], leases: LeaseState, over: Callable[[Session], bool]
    ) -> tuple[int, int]:
        """End sessions in the order of their ids until ``ROWS`` are reached: (looked at, ended), an entry for each."""
        seen = ended = rows = 0
        for name in sorted(ids):
            if rows >= ROWS:
                break
            seen += 1
            found = self.lock(write, name)
            if found is None or found.state is not SessionState.ACTIVE or not over(found):
                continue
            count = self.session(write, found, leases)
            write.also(entry_of(call, f"session/{name}", session=name, count=count))
            ended, rows = ended + 1, rows + count + 1
        return seen, ended

    def standing(self, found: Iterable[Session]) -> list[Session]:
        """Sessions as they stand: one whose time is over, or whose trust rule is, has ended, whatever its row says."""
        sessions, now = list(found), self._now()
        names = {session.rule for session in sessions if live(session, now)}
        rules = {name: readable(lambda name=name: self._store.get(TrustRule, name), None) for name in names}  # type: ignore[misc]
        return [
            each if live(each, now) and held(each, rules[each.rule]) else renewed(each, state=SessionState.ENDED)
            for each in sessions
        ]

    def of_rule(self, call: Call, name: str) -> int:
        """End the sessions that a trust rule has opened as it was before: how many. Each piece is a write of its own.

        One that is opened meanwhile, by what its login had read of the rule, gives nothing more and shows as ended.
        """
        after: tuple[str, ...] = ()
        where, total = {"rule": name, "state": SessionState.ACTIVE.value}, 0
        while found := self._store.page(Session, after=after, limit=BATCH, where=where, sound_only=True):
            after = (found[-1].id,)
            rule = self._store.get(TrustRule, name)
            total += self.all(call, [each.id for each in found], lambda session: not held(session, rule))  # noqa: B023
        return total

    def all(self, call: Call, ids: Iterable[str], over: Callable[[Session], bool]) -> int:
        """End sessions and revoke their leases, in as many writes as it takes; how many sessions."""
        waiting, total = sorted(ids), 0
        while waiting:
            with self._store.write(call.intent()) as write:
                seen, ended = self.sessions(write, call, waiting[:BATCH], LeaseState.REVOKED, over)
            waiting, total = waiting[seen:], total + ended
        return total

    def some_leases(
        self, write: Write, call: Call, found: Iterable[Lease], state: LeaseState, over: Callable[[Lease], bool]
    ) -> int:
        """End leases that are still active, an entry for each; how many."""
        ended = 0
        held = set[str]()
        for seen in sorted(found, key=lambda lease: (lease.session, lease.id)):
            if seen.session not in held:
                self.lock(write, seen.session)
                held.add(seen.session)
            lease = write.get(Lease, seen.id)
            if lease is None or lease.state is not LeaseState.ACTIVE or not over(lease):
                continue
            write.replace(lease, ended_lease(lease, state, self._now()))
            write.also(entry_of(call, lease.resource, lease=lease.id, session=lease.session, version=lease.version))
            ended += 1
        return ended

    def chores(self) -> Iterator[Work]:
        """What the background loop has to do now; each piece stands alone, is small, and may be repeated."""
        none = timedelta(0)
        yield from self._pieces("session/lapsed", Session, none, "active", self._end_sessions)
        yield from self._pieces("lease/lapsed", Lease, none, "active", self._end_leases)
        yield from self._pieces("session/ended", Session, KEEP, "ended", self._forget)
        yield from self._pieces("lease/expired", Lease, KEEP, "expired", self._forget)
        yield from self._pieces("lease/revoked", Lease, KEEP, "revoked", self._forget)
        yield from self._pieces("token/used", UsedToken, KEEP, "", self._forget)
        yield from self._pieces("receipt/old", Receipt, KEEP_RECEIPTS, "", self._forget)

    def _pieces(
        self, name: str, kind: type[R], late: timedelta, state: str, work: Callable[[list[R], Call], None]
    ) -> Iterator[Work]:
        for _ in range(PIECES):
            found = self._store.due(kind, self._now() - late, limit=PIECE, state=state)
            if not found:
                return
            yield name, partial(work, found)

    def _end_sessions(self, found: list[Session], call: Call) -> None:
        now = self._now()
        ids = [session.id for session in found]
        with last_write(self._store, call) as write:
            _, ended = self.sessions(write, call, ids, LeaseState.EXPIRED, lambda session: session.expires_at <= now)
            write.note(count=ended)

    def _end_leases(self, found: list[Lease], call: Call) -> None:
        now = self._now()
        with last_write(self._store, call) as write:
            ended = self.some_leases(write, call, found, LeaseState.EXPIRED, lambda lease: lease.expires_at <= now)
            write.note(count=ended)

    def _forget(self, found: list[R], call: Call) -> None:
        with last_write(self._store, call) as write:
            for record in found:
                write.delete(record)
            write.note(count=len(found))
