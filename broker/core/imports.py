"""Imports: a key version wrapped in the HSM, uploaded, read back and proven at a target.

The row is PENDING before anything leaves and until the target has proven itself, so whatever happens between is
settled by reading back, and a key is never uploaded twice while the first upload may still arrive (BY-06, BY-15).
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from broker.core import guard, ports
from broker.core.arrival import Found
from broker.core.call import Call
from broker.core.delivery import Delivery
from broker.core.errors import BrokerError, Unavailable, WrongState
from broker.core.guard import Guard
from broker.core.import_ledger import Asked, Imported, Ledger, OtherVersion
from broker.core.import_rules import (
    NO_TERMS,
    UNPROVEN,
    await_lease,
    disabled_by_us,
    importable,
    not_held,
    of_name,
    provable,
    remote_name_of,
    resumed,
    sound_terms,
)
from broker.core.kinds import ImportState, KeyState
from broker.core.model import Import, Key, RemoteKey, Terms
from broker.core.names import check_name
from broker.core.page import Page
from broker.core.proof import prove
from broker.core.slots import Slots

VERDICTS = frozenset({"PROOF_FAILED", "REMOTE_KEY_EXPOSED", "REMOTE_KEY_MISSING"})
"""Refusals that say something against the key at the target; any other only says that it could not be asked."""


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
        """Import one version (0: the primary) and prove it; the import that is there when it is proven already.

        A failed import may be tried again; a pending one is settled. Whether an ``Unavailable`` one arrived is found
        out by calling again. ``terms`` are set once the key is proven, also when it was proven before.
        """
        ledger = self.ledger
        sound_terms(terms, ledger.now())
        try:
            return self._import(ledger.permitted(call, name, version, target, remote_name), terms)
        except OtherVersion as other:
            return self._import(ledger.permitted(call, name, other.number, target, remote_name), terms)

    def prove(self, call: Call, name: str, version: int, target: str) -> Imported:
        """Read back and prove by use again. A verdict against the key at the target makes the import FAILED.

        Nothing is disabled here: the key has been in use there, so that is for people to decide. A key that is disabled
        or limited there, which its terms may have asked for, is refused as it is, and the import stays PROVEN.
        """
        asked = self.ledger.permitted(call, name, version, target, None)
        if asked.key.type.symmetric and asked.key.state is not KeyState.ENABLED:
            raise WrongState(
                "KEY_STATE", f"The key is {asked.key.state}; a symmetric key is proven by its use, so enable it first."
            )
        with self.ledger.turn(asked):
            row = of_name(provable(self._store.get(Import, name, asked.version.number, target)), asked.remote_name)
            call.note(target=target, version=row.version, remote_name=row.remote_name)
            try:
                remote = self._proven_again(asked, row)
            except WrongState as error:
                if error.reason in VERDICTS:
                    self.ledger.fail(call, row, error)
                raise
            return self.ledger.succeed(call, row, remote)

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
            next=(last.key, last.version, last.target) if last else (),
        )

    # ---- one import, step by step --------------------------------------------------------------------------------

    def _import(self, asked: Asked, terms: Terms) -> Imported:
        importable(asked.key, asked.version)
        with self.ledger.turn(asked):
            row, rows = self.ledger.settled(asked)
            not_held(row)
            remote_name = remote_name_of(asked.key.name, row, rows, asked.remote_name)
            asked.call.note(target=asked.target.name, version=asked.version.number, remote_name=remote_name)
            if row is not None and row.state is ImportState.PROVEN:
                return self.ledger.again(asked, row, terms)
            delivery = self.ledger.delivery(asked, row, rows, remote_name, terms)
            if asked.call.validate_only:
                return Imported(row=self._would(asked, delivery))
            return self._run(asked, delivery, row, terms)

    def _would(self, asked: Asked, delivery: Delivery) -> Import:
        """The import as it would begin; refuses what the import would refuse, and changes nothing."""
        delivery.must_be_free()
        delivery.must_be_readable()
        return self.ledger.begun(asked, delivery)

    def _run(self, asked: Asked, delivery: Delivery, earlier: Import | None, terms: Terms) -> Imported:
        ledger, call = self.ledger, asked.call
        found = _there(delivery, earlier) if earlier else None
        if found is None:
            self._may_be_sent(call, delivery, earlier)
        row = ledger.begin(asked, resumed(ledger.begun(asked, delivery), earlier, found), earlier)
        if found is None:
            found, row = self._send(call, delivery, row)
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
            first = delivery.is_first()
            blob = delivery.wrap()
        except BrokerError as error:  # nothing has left, so this attempt is over, whatever it was
            self.ledger.fail(call, row, error)
            raise
        row = replace(row, blob_sha256=hashlib.sha256(blob).hexdigest())
        call.note(blob_sha256=row.blob_sha256)
        try:
            return delivery.upload(blob, first=first) or self._confirmed(call, delivery, row), row
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

    def _proven_again(self, asked: Asked, row: Import) -> RemoteKey:
        port = self.ledger.port(asked.target)
        there = next((one for one in port.versions(row.remote_name) if one.version == row.remote_version), None)
        if there is None:
            raise WrongState(
                "REMOTE_KEY_MISSING",
                f"The target no longer shows version {row.remote_version} of {row.remote_name}; import the key again.",
            )
        prove(self.ledger.hsm, port, asked.ref, there)
        return there

    def _may_get(self, call: Call, name: str) -> bool:
        key = self._store.get(Key, name)
        resource = guard.of_key(key) if key else guard.of_unknown_key(name)
        return self._guard.permits(call.principal, "GetKey", resource)


def _there(delivery: Delivery, earlier: Import) -> Found | None:
    there = delivery.there
    return there.left() if earlier.failure == UNPROVEN else there.find()
