"""Imports: a key version wrapped in the HSM, uploaded, read back and proven at a target.

The row is PENDING before anything leaves and until the target has proven itself, so whatever happens between is
settled by reading back, and a key is never uploaded twice while the first upload may still arrive (BY-06, BY-15). How
that goes is ``bringing``'s; here is what comes before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from broker.core import ports
from broker.core.call import Call
from broker.core.errors import WrongState
from broker.core.imports.bringing import Bringing
from broker.core.imports.delivery import Delivery
from broker.core.imports.ledger import Asked, Imported, Ledger
from broker.core.imports.places import Before, look
from broker.core.imports.reproof import again, prove_again
from broker.core.imports.rules import (
    MISSING,
    NO_TERMS,
    importable,
    not_held,
    provable,
    remote_name_of,
    sound_terms,
)
from broker.core.imports.whereabouts import Whereabouts, whereabouts
from broker.core.kinds import ImportState
from broker.core.model import Import, Key, Terms
from broker.core.names import check_name
from broker.core.operations.running import Operations
from broker.core.page import Page
from broker.core.policy import guard
from broker.core.policy.guard import Guard
from broker.core.targets.copies import place_of
from broker.core.targets.slots import Slots


class Imports:
    """The noun behind ImportService, but for what is carried by hand (``handover``)."""

    def __init__(
        self,
        store: ports.Store,
        hsm: ports.Hsm,
        guard: Guard,
        operations: Operations,
        connect: ports.Connect,
        now: ports.Now,
        slots: Slots | None = None,
    ) -> None:
        self._store = store
        self._guard = guard
        self.ledger = Ledger(store, hsm, guard, operations, connect, now, slots)
        self.bringing = Bringing(self.ledger)

    def import_key(
        self, call: Call, name: str, version: int, target: str, remote_name: str, terms: Terms = NO_TERMS
    ) -> Imported:
        """Import one version (0: the primary) and prove it; one that was proven before is proven again.

        If the target has not got it any more, it is sent anew. A failed import may be tried again; a pending one is
        settled. Whether an ``Unavailable`` one arrived is found out by calling again. ``terms`` are set once the key
        is proven, also when it was proven before.
        """
        ledger = self.ledger
        sound_terms(terms, ledger.now())
        return self._import(ledger.permitted(call, name, version, target, remote_name), terms)

    def prove(self, call: Call, name: str, version: int, target: str, remote_name: str = "") -> Imported:
        """Read back and prove by use again. A verdict against the key at the target makes the import FAILED, or GONE.

        ``remote_name``: of several copies the one of that name, also one that had come to nothing: if it is there and
        proves itself, it is PROVEN.

        Nothing is disabled here: the key has been in use there, so that is for people to decide. A key that is disabled
        or limited there, which its terms may have asked for, is refused as it is, and the import stays PROVEN.
        """
        asked = self.ledger.permitted(call, name, version, target, remote_name or None)
        with self.ledger.turn(asked):
            row = provable(self.ledger.rows(asked)[0])
            call.note(target=target, version=row.version, remote_name=row.remote_name)
            return self.ledger.succeed(call, row, prove_again(self.ledger, asked, row))

    def page(self, call: Call, name: str, target: str, after: tuple[str | int, ...], limit: int) -> Page[Import]:
        """What is where, of one key or target or of all; only of keys that the caller may get."""
        where: dict[str, str | int] = {}
        if name:
            where["key"] = check_name(name, "key")
        if target:
            where["target"] = check_name(target, "target")
        self._guard.check(call, guard.BROKER)
        rows = self._store.page(Import, after=after, limit=limit, where=where, sound_only=True)
        shown = {key for key in {row.key for row in rows} if self._may_get(call, key)}
        last = rows[-1] if len(rows) == limit else None
        return Page(
            items=[row for row in rows if row.key in shown],
            next=place_of(last) if last else (),
        )

    def whereabouts(self, rows: list[Import]) -> list[Whereabouts]:
        """What each of these copies is good for."""
        return whereabouts(self._store, rows)

    def chores(self) -> Iterator[tuple[str, Callable[[Call], None]]]:
        """What the background has to settle that no operation tells of."""
        yield from self.bringing.chores()

    # ---- one import, step by step --------------------------------------------------------------------------------

    def _import(self, asked: Asked, terms: Terms) -> Imported:
        importable(asked.key, asked.version)
        with self.ledger.turn(asked):
            before = self.bringing.before(asked)
            not_held(before.row)
            remote_name = remote_name_of(asked.key.name, asked.version.number, before.rows, asked.remote_name)
            asked.call.note(target=asked.target.name, version=asked.version.number, remote_name=remote_name)
            if before.row is not None and before.row.state is ImportState.PROVEN:
                if (done := self._again(asked, before.row, terms)) is not None:
                    return done
                before = self._without(asked, before.row)
            delivery = self.ledger.delivery(asked, before.row, before.rows, remote_name, terms)
            if asked.call.validate_only:
                return Imported(row=self._would(asked, delivery, before.row))
            return self._run(asked, delivery, before, terms)

    def _again(self, asked: Asked, row: Import, terms: Terms) -> Imported | None:
        """As it is proven now; None when the target does not show it any more, which is written down then."""
        try:
            return again(self.ledger, asked, row, terms, goes_on=True)
        except WrongState as error:
            if error.reason != MISSING:
                raise
            return None

    def _without(self, asked: Asked, row: Import) -> Before:
        """The rows, now that the target does not show this one any more; of a dry run, as they would be."""
        now, rows = self.ledger.rows(asked)
        if not asked.call.validate_only:
            return Before(row=now, rows=rows)
        lost = replace(row, state=ImportState.FAILED, failure=MISSING)
        return Before(row=lost, rows=[lost if one == row else one for one in rows])

    def _would(self, asked: Asked, delivery: Delivery, earlier: Import | None) -> Import:
        """The import as it would begin; refuses what the import would refuse, and changes nothing."""
        delivery.must_be_free()
        delivery.must_be_readable()
        return self.ledger.begun(asked, delivery, earlier)

    def _run(self, asked: Asked, delivery: Delivery, before: Before, terms: Terms) -> Imported:
        found = look(delivery.there, before.memory) if before.row else None
        if found is None:
            before.await_arrival(self.ledger.now())
            if before.row is None or before.row.state is not ImportState.PENDING:  # else it has then come to nothing
                delivery.must_be_in_order()
        return self.bringing.bring(asked, delivery, before, found, terms)

    def _may_get(self, call: Call, name: str) -> bool:
        key = self._store.get(Key, name)
        resource = guard.of_key(key) if key else guard.of_unknown_key(name)
        return self._guard.permits(call.principal, "GetKey", resource)
