"""Imports: a key version wrapped in the HSM, uploaded, read back and proven at a target.

The row is PENDING before anything leaves and until the target has proven itself, so whatever happens between is
settled by reading back, and a key is never uploaded twice while the first upload may still arrive (BY-06, BY-15).
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from broker.core import ports
from broker.core.call import Call
from broker.core.errors import BrokerError, Unavailable, WrongState
from broker.core.imports.arrival import Found
from broker.core.imports.delivery import Delivery
from broker.core.imports.ledger import Asked, Imported, Ledger
from broker.core.imports.reproof import again, prove_again
from broker.core.imports.rules import (
    MISSING,
    NO_TERMS,
    OtherVersion,
    await_lease,
    disabled_by_us,
    importable,
    not_held,
    provable,
    remote_name_of,
    resumed,
    sound_terms,
)
from broker.core.kinds import ImportState, Sent
from broker.core.model import Import, Key, Terms
from broker.core.names import check_name
from broker.core.page import Page
from broker.core.policy import guard
from broker.core.policy.guard import Guard
from broker.core.targets.copies import UNPROVEN, place_of
from broker.core.targets.keks import remedied
from broker.core.targets.slots import Slots


class Imports:
    """The noun behind ImportService, but for what is carried by hand (``handover``)."""

    def __init__(
        self,
        store: ports.Store,
        hsm: ports.Hsm,
        guard: Guard,
        connect: ports.Connect,
        now: ports.Now,
        slots: Slots | None = None,
    ) -> None:
        self._store = store
        self._guard = guard
        self.ledger = Ledger(store, hsm, guard, connect, now, slots)

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
        try:
            return self._import(ledger.permitted(call, name, version, target, remote_name), terms)
        except OtherVersion as other:
            return self._import(ledger.permitted(call, name, other.number, target, remote_name), terms)

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

    # ---- one import, step by step --------------------------------------------------------------------------------

    def _import(self, asked: Asked, terms: Terms) -> Imported:
        importable(asked.key, asked.version)
        with self.ledger.turn(asked):
            row, rows = self.ledger.settled(asked)
            not_held(row)
            remote_name = remote_name_of(asked.key.name, asked.version.number, rows, asked.remote_name)
            asked.call.note(target=asked.target.name, version=asked.version.number, remote_name=remote_name)
            if row is not None and row.state is ImportState.PROVEN:
                if (done := self._again(asked, row, terms)) is not None:
                    return done
                row, rows = self._without(asked, row)
            delivery = self.ledger.delivery(asked, row, rows, remote_name, terms)
            if asked.call.validate_only:
                return Imported(row=self._would(asked, delivery, row))
            return self._run(asked, delivery, row, terms)

    def _again(self, asked: Asked, row: Import, terms: Terms) -> Imported | None:
        """As it is proven now; None when the target does not show it any more, which is written down then."""
        try:
            return again(self.ledger, asked, row, terms, goes_on=True)
        except WrongState as error:
            if error.reason != MISSING:
                raise
            return None

    def _without(self, asked: Asked, row: Import) -> tuple[Import | None, list[Import]]:
        """The rows, now that the target does not show this one any more; of a dry run, as they would be."""
        now, rows = self.ledger.rows(asked)
        if not asked.call.validate_only:
            return now, rows
        lost = replace(row, state=ImportState.FAILED, failure=MISSING)
        return lost, [lost if one == row else one for one in rows]

    def _would(self, asked: Asked, delivery: Delivery, earlier: Import | None) -> Import:
        """The import as it would begin; refuses what the import would refuse, and changes nothing."""
        delivery.must_be_free()
        delivery.must_be_readable()
        return self.ledger.begun(asked, delivery, earlier)

    def _run(self, asked: Asked, delivery: Delivery, earlier: Import | None, terms: Terms) -> Imported:
        ledger, call = self.ledger, asked.call
        found = _there(delivery, earlier) if earlier else None
        if found is None:
            self._may_be_sent(call, delivery, earlier)
        row = ledger.begin(asked, resumed(ledger.begun(asked, delivery, earlier), earlier, found), earlier)
        if found is None:
            try:
                found, row = self._send(call, delivery, row)
            except WrongState as error:
                raise remedied(error, delivery.there.port, asked.target) from error
        enable = earlier is not None and disabled_by_us(earlier, found.remote.version)
        return ledger.finish(call, delivery.there, row, found, terms, enable=enable)

    def _may_be_sent(self, call: Call, delivery: Delivery, earlier: Import | None) -> None:
        """Return if nothing of ``earlier`` can still arrive and no later version is there."""
        if earlier is not None:
            await_lease(earlier, self.ledger.now())
        try:
            delivery.must_be_in_order()
        except WrongState as error:
            if earlier is not None and earlier.state is ImportState.PENDING:
                self.ledger.fail(call, earlier, error)
            raise

    def _send(self, call: Call, delivery: Delivery, row: Import) -> tuple[Found, Import]:
        """Wrap and upload; what is at the target now, and the row with what was sent."""
        try:
            parcel = delivery.pack()
        except BrokerError as error:  # nothing has left, so this attempt is over, whatever it was
            self.ledger.fail(call, row, error)
            raise
        sent = Sent.FILE if row.sent is Sent.FILE else Sent.UPLOAD
        digest, kek = hashlib.sha256(parcel.blob).hexdigest(), parcel.offer.key.thumbprint
        row = replace(row, blob_sha256=digest, kek_thumbprint=kek, sent=sent)
        call.note(blob_sha256=digest, kek_thumbprint=kek)
        try:
            return delivery.upload(parcel) or self._confirmed(call, delivery, row), row
        except Unavailable as error:  # it may have arrived: the row stays PENDING, and the next attempt reads back
            if not call.settled:
                self.ledger.pause(call, row, error, error.reason)
            raise
        except BrokerError as error:
            self.ledger.fail(call, row, error)
            raise

    def _confirmed(self, call: Call, delivery: Delivery, row: Import) -> Found:
        try:
            return delivery.confirmed()
        except Unavailable as error:
            self.ledger.pause(call, row, error, UNPROVEN)
            raise

    def _may_get(self, call: Call, name: str) -> bool:
        key = self._store.get(Key, name)
        resource = guard.of_key(key) if key else guard.of_unknown_key(name)
        return self._guard.permits(call.principal, "GetKey", resource)


def _there(delivery: Delivery, earlier: Import) -> Found | None:
    there = delivery.there
    return there.left() if earlier.failure == UNPROVEN else there.find()
