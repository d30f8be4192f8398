"""Leases: what has been handed out, to whom, until when."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from broker.core import receipts
from broker.core.call import Call
from broker.core.errors import InvalidRequest, NotFound
from broker.core.kinds import LeaseState
from broker.core.leases.ending import BATCH, Ending, shown
from broker.core.model import Lease, Session
from broker.core.names import check_path
from broker.core.once import last_write
from broker.core.page import Page
from broker.core.policy.guard import BROKER, Guard
from broker.core.ports import Now, Store
from broker.core.reasons import Reason
from broker.core.rows import readable

ACTIVE = LeaseState.ACTIVE.value


class Leases:
    """The noun behind LeaseService."""

    def __init__(self, store: Store, guard: Guard, now: Now) -> None:
        self._store = store
        self._guard = guard
        self._now = now
        self._ending = Ending(store, now)

    def page(self, call: Call, principal: str, session: str, after: tuple[str | int, ...], limit: int) -> Page[Lease]:
        """Leases by id, of one principal, of one session or of all; one whose session is over shows as expired."""
        self._guard.check(call, BROKER)
        where = {name: value for name, value in (("principal", principal), ("session", session)) if value}
        items = self._store.page(Lease, after=after, limit=limit, where=where, sound_only=True)
        found = filter(None, (self._holder(name) for name in {lease.session for lease in items}))
        holders = {session.id: session for session in self._ending.standing(found)}
        now = self._now()
        return Page(
            items=[shown(lease, holders.get(lease.session), now) for lease in items],
            next=(items[-1].id,) if len(items) == limit else (),
        )

    def revoke(self, call: Call, *, lease: str = "", principal: str = "", prefix: str = "") -> int:
        """Revoke one lease, all of a principal, or all of the secrets below a prefix; how many were active.

        Revoking what has ended already is no error (TL-06); NotFound ``LEASE_NOT_FOUND`` for an id that never was.
        """
        if sum(map(bool, (lease, principal, prefix))) != 1:
            raise InvalidRequest(Reason.SELECTION_INVALID, "Name one lease, one principal or one prefix.")
        below = _below(prefix) if prefix else None
        self._guard.check(call, BROKER)
        batches = self._one(lease) if lease else self._several(principal, below)
        if call.validate_only:
            return sum(found.state is LeaseState.ACTIVE for batch in batches for found in batch)
        with self._store.write(call.intent()) as write:
            receipt = receipts.replay(write, call)
        if receipt is not None:
            return receipt.version
        revoked = 0
        for batch in batches:
            with self._store.write(call.intent()) as write:
                revoked += self._ending.some_leases(write, call, batch, LeaseState.REVOKED, lambda _: True)
        call.note(count=revoked)
        with last_write(self._store, call) as write:
            receipts.keep(write, call, "leases", revoked)
        return revoked

    def _holder(self, session: str) -> Session | None:
        return readable(lambda: self._store.get(Session, session), None)

    def _one(self, name: str) -> Iterator[list[Lease]]:
        found = self._store.get(Lease, name)
        if found is None:
            raise NotFound(Reason.LEASE_NOT_FOUND, "There is no such lease; `broker lease list` shows those there are.")
        return iter([[found]])

    def _several(self, principal: str, below: Callable[[str], bool] | None) -> Iterator[list[Lease]]:
        where = {"state": ACTIVE} | ({"principal": principal} if principal else {})
        after: tuple[str, ...] = ()
        # A damaged row holds up no revocation (TL-18); it is dead with its session.
        while found := self._store.page(Lease, after=after, limit=BATCH, where=where, sound_only=True):
            after = (found[-1].id,)
            yield [lease for lease in found if below is None or below(lease.resource)]


def _below(prefix: str) -> Callable[[str], bool]:
    name = "secret/" + check_path(prefix, "secret")
    return lambda resource: resource == name or resource.startswith(name + "/")
