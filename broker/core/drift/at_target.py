"""What a target has, held against the record of what was brought there. Nothing is changed there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from broker.core import ports
from broker.core.errors import WrongState
from broker.core.findings import Finding
from broker.core.imports.places import UNDER_WAY
from broker.core.imports.proof import UNTRIED, opens
from broker.core.imports.rules import EXPORTED
from broker.core.imports.terms import read
from broker.core.keys.refs import ref
from broker.core.kinds import Drift, ImportState, KeyState, Sent
from broker.core.model import Import, Key, KeyVersion, RemoteKey, Target
from broker.core.reasons import Reason
from broker.core.records import key_of
from broker.core.targets.keks import UNFIT, check_pin, standing

BATCH = 500

AGAINST_THE_KEK = UNFIT | {Reason.KEK_CHANGED}


@dataclass(frozen=True, slots=True)
class _Copy:
    """A copy on record, and the version of the key that it is."""

    row: Import
    key: Key
    version: KeyVersion

    def is_it(self, remote: RemoteKey) -> bool:
        """By the public key, whatever it is called there; without one, by the record."""
        if remote.public_key is not None and self.version.public_key is not None:
            return remote.public_key == self.version.public_key
        named = bool(self.row.remote_version) and remote.version == self.row.remote_version
        return named and self.row.failure != Reason.PROOF_FAILED

    def found(self, drift: Drift, detail: str, now: datetime, remote_version: str = "") -> Finding:
        row = self.row
        return Finding(
            key=row.key,
            version=row.version,
            remote_name=row.remote_name,
            remote_version=remote_version or row.remote_version,
            drift=drift,
            detail=detail,
            found_at=now,
        )


class Look:
    """One look at one target."""

    def __init__(self, store: ports.Store, hsm: ports.Hsm, port: ports.Target, target: Target, now: datetime) -> None:
        self._store = store
        self._hsm = hsm
        self._port = port
        self._target = target
        self._now = now

    def findings(self) -> Iterator[Finding]:
        """All there are; Unavailable when the target cannot be asked."""
        yield from self._kek()
        for name, copies in self._copies().items():
            held = self._port.versions(name)
            for copy in copies:
                yield from self._copy(copy, held)
            yield from self._extra(name, copies, held)

    def _kek(self) -> Iterator[Finding]:
        try:
            kek = standing(self._port, self._target)
            if kek is not None:
                check_pin(self._target, kek)
        except WrongState as error:
            if error.reason not in AGAINST_THE_KEK:
                raise
            yield Finding(
                key="", version=0, remote_name="", remote_version="", drift=Drift.KEK_CHANGED,
                detail=error.message, found_at=self._now,
            )  # fmt: skip

    def _copies(self) -> Mapping[str, list[_Copy]]:
        """By their name there; of what is gone for good, and what never left, nothing is asked."""
        found: dict[str, list[_Copy]] = {}
        after: tuple[str | int, ...] = ()
        where = {"target": self._target.name}
        while rows := self._store.page(Import, after=after, limit=BATCH, where=where, sound_only=True):
            after = key_of(rows[-1])
            for row in rows:
                held = self._store.version(row.key, row.version) if row.may_be_there else None
                if held is not None:
                    found.setdefault(row.remote_name, []).append(_Copy(row, *held))
        return found

    def _copy(self, copy: _Copy, held: list[RemoteKey]) -> Iterator[Finding]:
        row = copy.row
        there = next((one for one in held if one.version == row.remote_version), None)
        withdrawn = row.state is ImportState.DISABLED or row.failure == Reason.TARGET_CANNOT_DISABLE
        if withdrawn:
            if any(one.enabled and copy.is_it(one) for one in held):
                cannot = row.failure == Reason.TARGET_CANNOT_DISABLE
                yield copy.found(Drift.ENABLED, "the target cannot disable it alone" if cannot else "", self._now)
        elif row.state is ImportState.PROVEN:
            yield from self._proven(copy, there)
        elif row.state is ImportState.FAILED and row.sent is not Sent.NOTHING:
            back = next((one for one in held if one.enabled and copy.is_it(one)), None)
            if back is not None:
                yield copy.found(Drift.RETURNED, "", self._now, back.version)

    def _proven(self, copy: _Copy, there: RemoteKey | None) -> Iterator[Finding]:
        if there is None:
            remains = self._port.remains(copy.row.remote_name)
            yield copy.found(Drift.DELETED, remains or "nothing there could bring it back", self._now)
            return
        if there.exposed:
            yield copy.found(Drift.EXPORTABLE, f"{there.exposed} is set", self._now)
        if self._is_another(copy, there):
            yield copy.found(Drift.REPLACED, "", self._now)
        elif not there.enabled and not _is_to_be_disabled(copy.row):
            yield copy.found(Drift.DISABLED, "", self._now)

    def _is_another(self, copy: _Copy, there: RemoteKey) -> bool:
        if copy.version.public_key is not None:
            shown = there.enabled or there.public_key is not None
            return shown and there.public_key != copy.version.public_key
        if not there.enabled or copy.key.state is not KeyState.ENABLED:
            return False  # only its use could tell
        try:
            return not opens(self._hsm, self._port, ref(copy.key, copy.version), there)
        except WrongState as error:
            if error.reason not in UNTRIED:
                raise
            return False

    def _extra(self, name: str, copies: list[_Copy], held: list[RemoteKey]) -> Iterator[Finding]:
        if any(copy.row.state in UNDER_WAY and copy.row.failure != EXPORTED for copy in copies):
            return  # one may be arriving just now
        known = {copy.row.remote_version for copy in copies}
        for one in held:
            if one.enabled and one.version not in known:
                copy = next((each for each in copies if each.is_it(one)), None)
                if copy is not None and copy.row.state not in {ImportState.PROVEN, ImportState.DISABLED}:
                    continue  # it has returned, or was carried there and is to be confirmed
                detail = "it holds the same key a second time" if copy else "it is none of the broker's"
                yield Finding(
                    key=copies[0].row.key, version=copy.row.version if copy else 0, remote_name=name,
                    remote_version=one.version, drift=Drift.EXTRA_VERSION, detail=detail, found_at=self._now,
                )  # fmt: skip


def _is_to_be_disabled(row: Import) -> bool:
    return row.terms is not None and not read(row.terms).enabled
