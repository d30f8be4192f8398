"""Keys that people carry to a target: wrapped into a file here, uploaded by hand, read back and proven afterwards.

The file is made for the pinned KEK and is of no use to anybody else. None is kept, and each export makes a fresh one
(BY-14). Until it has been read back and proven the import is PENDING, as ``EXPORTED``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from broker.core.amiss import not_enabled
from broker.core.armour import public_key
from broker.core.call import Call
from broker.core.errors import InvalidRequest, NotFound, WrongState
from broker.core.imports.bringing import Bringing
from broker.core.imports.delivery import Delivery
from broker.core.imports.ledger import Asked, Imported
from broker.core.imports.places import Before
from broker.core.imports.reproof import again
from broker.core.imports.rules import (
    EXPORTED,
    NO_TERMS,
    agree,
    importable,
    not_held,
    remote_name_of,
    sound_terms,
)
from broker.core.keys.phases import Use, require_use
from broker.core.kinds import ImportState, KeyState
from broker.core.model import Import, Target, Terms, WrappingKey
from broker.core.ports import Carries
from broker.core.reasons import Reason
from broker.core.targets.parts import files_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A pending import and the file for the target's own tools; without the file when it was only asked about."""

    row: Import
    transfer_file: bytes = b""
    blob_sha256: str = ""


class Handover:
    """The part of ImportService that leaves the way to the target to people. ``bringing``: the one of the imports."""

    def __init__(self, bringing: Bringing) -> None:
        self._bringing = bringing
        self._ledger = bringing.ledger

    def export(
        self, call: Call, name: str, version: int, target: str, remote_name: str, kek_pem: bytes = b""
    ) -> Exported:
        """Wrap one version (0: the primary) under the pinned KEK into a file.

        ``kek_pem``: the pinned KEK, for when the target cannot be reached; then nothing connects to it. The same
        request again makes another file of the same key, since none is kept.
        """
        return self._export(self._ledger.permitted(call, name, version, target, remote_name), kek_pem)

    def confirm(
        self, call: Call, name: str, version: int, target: str, remote_name: str = "", terms: Terms = NO_TERMS
    ) -> Imported:
        """Read back what was carried to the target and prove it; PROVEN afterwards. Never uploads.

        What is not there makes the import FAILED (``REMOTE_KEY_MISSING``), and may be confirmed later all the same.
        """
        sound_terms(terms, self._ledger.now())
        asked = self._ledger.permitted(call, name, version, target, remote_name or None)
        require_use(asked.key, asked.version, Use.IMPORT)
        return self._confirm(asked, terms)

    # ---- out -----------------------------------------------------------------------------------------------------

    def _export(self, asked: Asked, kek_pem: bytes) -> Exported:
        ledger, call = self._ledger, asked.call
        importable(asked.key, asked.version)
        files = files_of(ledger.port(asked.target))
        with ledger.turn(asked):
            before = self._bringing.before(asked)
            row = before.row
            not_held(row)
            remote_name = remote_name_of(asked.key.name, asked.version.number, before.rows, asked.remote_name)
            call.note(target=asked.target.name, version=asked.version.number, remote_name=remote_name)
            if row is not None and row.state is ImportState.PROVEN:
                raise _there_already(row)
            kek = _given(asked.target, kek_pem) if kek_pem else None
            delivery = ledger.delivery(asked, row, before.rows, remote_name, kek=kek)
            if kek is None:
                delivery.must_be_free()
            else:
                delivery.must_be_in_order(asking=False)
            before.await_arrival(ledger.now())
            if call.validate_only:
                delivery.must_be_readable()
                return Exported(row=self._begun(asked, delivery, row))
            return self._carry_out(asked, delivery, before, files)

    def _carry_out(self, asked: Asked, delivery: Delivery, before: Before, files: Carries) -> Exported:
        row = before.row
        new = self._begun(asked, delivery, row)
        if row is not None and row.state is ImportState.PENDING and self._ledger.seen(asked.call):
            new = row  # the same request again: another file, and nothing else is new
        row, file = self._bringing.export(asked, delivery, new, before, files)
        return Exported(row=row, transfer_file=file, blob_sha256=row.blob_sha256)

    def _begun(self, asked: Asked, delivery: Delivery, earlier: Import | None) -> Import:
        return replace(self._ledger.begun(asked, delivery, earlier), failure=EXPORTED)

    # ---- and back ------------------------------------------------------------------------------------------------

    def _confirm(self, asked: Asked, terms: Terms) -> Imported:
        ledger, call = self._ledger, asked.call
        if asked.key.state is not KeyState.ENABLED:
            raise not_enabled(asked.key, "only the import of an enabled one can be confirmed")
        with ledger.turn(asked):
            before = self._bringing.before(asked)
            row = before.row
            if row is None:
                raise NotFound(
                    Reason.IMPORT_NOT_FOUND,
                    f"Version {asked.version.number} of the key {asked.key.name} was not exported for this target; "
                    "export it first (`broker key export`).",
                )
            call.note(target=row.target, version=row.version, remote_name=row.remote_name)
            if row.state is ImportState.PROVEN:
                return again(ledger, asked, row, terms)
            port = ledger.port(asked.target)
            agree(asked.call, asked.key, port, terms)
            there = ledger.arrival(asked, port, row.remote_name, row, before.rows)
            found = there.find()
            if found is None:
                raise self._missing(call, row, before)
            if call.validate_only:
                return Imported(row=row)
            return self._bringing.confirm(asked, there, row, before, found, terms)

    def _missing(self, call: Call, row: Import, before: Before) -> WrongState:
        """The refusal; written down once no upload of the broker's own can still arrive (BY-15)."""
        before.await_arrival(self._ledger.now())
        error = WrongState(
            Reason.REMOTE_KEY_MISSING,
            f"The target has no version of {row.remote_name} that is this key; upload the exported file under that "
            "name, then confirm again.",
        )
        if row.state is not ImportState.FAILED and not call.validate_only:
            self._ledger.fail(call, row, error, operation=before.operation)
        return error


def _there_already(row: Import) -> WrongState:
    when = f" at {row.proven_at:%Y-%m-%dT%H:%M:%SZ}" if row.proven_at else ""
    return WrongState(
        Reason.IMPORT_PROVEN,
        f"This version was proven at the target{when}, so nothing has to be carried there. `broker key prove` asks the "
        "target whether it is there still; if it is not, export the key again.",
    )


def _given(target: Target, pem: bytes) -> WrappingKey:
    """The pinned KEK from a file; InvalidRequest ``KEK_FILE_INVALID`` or ``KEK_UNEXPECTED``."""
    try:
        der = public_key(pem)
    except ValueError as error:
        raise InvalidRequest(
            Reason.KEK_FILE_INVALID, f"The KEK's file {error}; download it from the target again."
        ) from None
    found = hashlib.sha256(der).hexdigest()
    if found != target.kek_thumbprint:
        raise InvalidRequest(
            Reason.KEK_UNEXPECTED,
            f"The file holds a key with the thumbprint {found}, not the KEK that is pinned for this target.",
        )
    return WrappingKey(id=target.kek_id, public_key=der, thumbprint=found)
