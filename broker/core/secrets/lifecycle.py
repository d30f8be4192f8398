"""Static secrets: versions of named fields, sealed at rest.

Values come in with ``put`` and go out with ``read``; between them they are sealed (``core.sealing``), and nothing here
ever logs, records, quotes or keeps one. The permission is decided on the secret as it is stored, once more inside the
transaction when its labels have changed since, and for a change of labels on the secret as it is to be (AZ-15).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from broker.core import ports
from broker.core.amiss import no_field, no_secret_version
from broker.core.call import Call
from broker.core.errors import InvalidRequest, WrongState
from broker.core.kinds import SecretVersionState
from broker.core.last_uses import LastUses
from broker.core.model import RootKey, Secret, SecretRead, SecretVersion
from broker.core.names import check_path
from broker.core.once import once
from broker.core.operations.running import Operations
from broker.core.page import Page
from broker.core.policy.guard import BROKER, Guard, of_secret
from broker.core.reasons import Reason
from broker.core.schedules.standing import Standing, standing_of_secret
from broker.core.secrets.putting import Putting, Written, there
from broker.core.secrets.references import Opened, Reference, parse_reference
from broker.core.secrets.roots import Roots
from broker.core.secrets.sealing import Sealing, damaged
from broker.core.secrets.versions import (
    DELETED,
    DESTROYED,
    ENABLED,
    MAX_VERSIONS,
    check_max_age,
    check_numbers,
    gone,
    moved,
)

__all__ = ["Opened", "Reference", "Secrets", "parse_reference"]

MAX_CONTAINS = 512
SCANNED = 1000
"""How many secrets are looked at for one page, however few of them the caller may see."""

Stored = tuple[Secret | None, SecretVersion | None]


class Secrets:
    """The noun behind SecretService, and what FetchSecrets reads from. Permission first, only BrokerError raised."""

    def __init__(
        self,
        store: ports.Store,
        hsm: ports.Hsm,
        sealing: Sealing,
        guard: Guard,
        operations: Operations,
        now: ports.Now,
    ) -> None:
        self._store = store
        self._sealing = sealing
        self._guard = guard
        self._now = now
        self.roots = Roots(store, hsm, sealing, guard, operations, now)
        self._reads = LastUses(store, now, "secret", _read, lambda one: one.read_at)
        self._putting = Putting(store, sealing, guard, now, self.roots, self._open)

    def put(
        self,
        call: Call,
        name: str,
        fields: Mapping[str, bytes],
        *,
        expected_version: int | None,
        labels: dict[str, str],
        expires_at: datetime | None,
    ) -> Written:
        """Write the next version. No labels: those it has stay. No ``expires_at``: it does not expire.

        WrongState ``VERSION_MISMATCH`` when another version is the latest by now: exactly one writer wins. Exhausted
        ``VERSION_QUOTA``.
        """
        return self._putting.put(
            call, name, fields, expected_version=expected_version, labels=labels, expires_at=expires_at
        )

    def patch(
        self, call: Call, name: str, fields: Mapping[str, bytes], remove: list[str], *, expected_version: int | None
    ) -> Written:
        """Write the next version: the latest one with ``fields`` set and the fields of ``remove`` gone.

        Labels and time of expiry stay. NotFound ``SECRET_NOT_FOUND`` / ``FIELD_NOT_FOUND`` (to remove), WrongState as
        ``read`` has it when the latest version is not there to be changed, and as ``put``.
        """
        return self._putting.patch(call, name, fields, remove, expected_version=expected_version)

    def get(self, call: Call, name: str) -> tuple[Secret, SecretRead | None]:
        """A secret without its values, and who read it last."""
        return self._permitted(call, name), self._store.get(SecretRead, name)

    def page(
        self,
        call: Call,
        prefix: str,
        contains: str,
        after: tuple[str | int, ...],
        limit: int,
        *,
        overdue: bool = False,
    ) -> Page[tuple[Secret, SecretRead | None]]:
        """Secrets by name, only those that the caller may get; a page can be shorter than ``limit``.

        ``prefix``: whole segments, the secret of that very name too. ``contains``: letters as they are, no pattern.
        ``overdue``: only those older than they may become.
        """
        self._guard.check(call, BROKER)
        if prefix:
            check_path(prefix, "folder")
        if len(contains) > MAX_CONTAINS:
            raise InvalidRequest(
                Reason.FILTER_INVALID, f"The text to look for is longer than {MAX_CONTAINS} characters."
            )
        rows = self._under(prefix, str(after[0]) if after else "")
        reads = self._reads_beside(rows, prefix)
        items: list[tuple[Secret, SecretRead | None]] = []
        for place, secret in enumerate(rows, 1):
            wanted = contains in secret.name and not (overdue and not self.standing(secret).overdue)
            if wanted and self._guard.permits(call.principal, "GetSecret", of_secret(secret.name, secret)):
                items.append((secret, reads.get(secret.name)))
            if len(items) == limit:
                return Page(items=items, next=(secret.name,) if place < len(rows) or place >= SCANNED else ())
        return Page(items=items, next=(rows[-1].name,) if len(rows) >= SCANNED else ())

    def standing(self, secret: Secret) -> Standing:
        """Whether it is older than it may become, or soon will be."""
        return standing_of_secret(secret, self._now())

    def late(self) -> Iterator[tuple[str, Standing]]:
        """The secrets that are overdue or soon will be, for the log."""
        after: tuple[str | int, ...] = ()
        while rows := self._store.page(Secret, after=after, limit=SCANNED, sound_only=True):
            for secret in rows:
                found = self.standing(secret)
                if found.overdue or found.soon:
                    yield secret.name, found
            after = (rows[-1].name,)

    def set_max_age(self, call: Call, name: str, most: timedelta | None) -> Secret:
        """Have it told when the latest version is older than this; None: at no age. A new version begins anew."""
        secret = self._permitted(call, name)
        check_max_age(most)
        latest = self._store.get(SecretVersion, name, secret.latest)
        since = min(latest.created_at if latest else secret.created_at, self._now())
        seconds = int(most.total_seconds()) if most else None

        def aged(stored: Secret) -> Secret:
            return replace(stored, max_age=seconds, renew_at=since + most if most else None)

        if call.validate_only:
            return aged(secret)

        def change(write: ports.Write) -> Secret:
            stored = there(write.get(Secret, name), name)
            self._permit_again(call, stored)
            if stored.latest != secret.latest:
                raise WrongState(
                    Reason.CHANGED_MEANWHILE, "The secret has got a new version meanwhile; send the request again."
                )
            return write.replace(stored, aged(stored))

        return once(self._store, call, name, change, lambda write, _: there(write.get(Secret, name), name))

    def versions(self, call: Call, name: str, after: tuple[str | int, ...], limit: int) -> Page[SecretVersion]:
        """The versions of one secret, oldest first."""
        self._permitted(call, name)
        items = self._store.page(SecretVersion, under=(name,), after=after, limit=limit, sound_only=True)
        return Page(items=items, next=(name, items[-1].number) if len(items) == limit else ())

    def delete(self, call: Call, name: str, versions: list[int]) -> Secret:
        """ENABLED → DELETED: not fetched until undeleted. Twice is the same as once."""
        return self._move(call, name, versions, DELETED)

    def undelete(self, call: Call, name: str, versions: list[int]) -> Secret:
        """DELETED → ENABLED. Twice is the same as once."""
        return self._move(call, name, versions, ENABLED)

    def destroy(self, call: Call, name: str, versions: list[int]) -> Secret:
        """Erase the data keys and the sealed fields, for good.

        What an old backup or write-ahead log still holds opens only with the root key of its time, which is destroyed
        once it has been rotated out.
        """
        try:
            return self._move(call, name, versions, DESTROYED)
        finally:  # also when nobody knows whether the commit arrived
            if not call.validate_only and call.decision == "allow":
                for number in versions[:MAX_VERSIONS]:
                    self._sealing.forget(name, number)

    def read(self, call: Call, reference: Reference) -> Opened:
        """Decide (action FetchSecrets on the secret), find and open one reference; writes nothing.

        PermissionDenied, NotFound ``SECRET_NOT_FOUND`` / ``SECRET_VERSION_NOT_FOUND`` / ``FIELD_NOT_FOUND``,
        WrongState ``SECRET_EXPIRED`` / ``SECRET_DELETED`` / ``SECRET_DESTROYED`` / ``SECRET_DAMAGED``.
        """
        return self.open(call, reference, *self.look_up([reference]))

    def look_up(self, references: list[Reference]) -> list[Stored]:
        """What is stored of each, as of one moment: labels and versions belong together (AZ-15)."""
        return self._store.secrets([(each.name, each.version) for each in references])

    def open(self, call: Call, reference: Reference, stored: Stored) -> Opened:
        """As ``read``, of what was looked up."""
        secret, version = stored
        secret = there(self._allowed(call, reference.name, secret), reference.name, self._now())
        if version is None:
            raise no_secret_version(reference.name, reference.version)
        if version.state is not ENABLED:
            raise gone(version)
        fields = self._open(version)
        if reference.field:
            if reference.field not in fields:
                raise no_field(reference.name, version.number, reference.field)
            fields = {reference.field: fields[reference.field]}
        return Opened(reference=reference, version=version.number, fields=fields, expires_at=secret.expires_at)

    def was_read(self, principal: str, names: list[str]) -> None:
        """Remember who read; the background loop writes it down within seconds (``flush_reads``)."""
        self._reads.add(principal, names)

    def flush_reads(self, make_call: Callable[[str], Call]) -> None:
        """Write down who read what last, some at a time; what could not be written is kept for the next time.

        Every process has reads of its own to write. ``make_call``: the broker's own call about a resource.
        """
        self._sealing.sweep()
        self._reads.flush(make_call)

    def rotate_root(self, call: Call) -> int:
        """Make the next root key and return its version; everything is wrapped anew in the background."""
        return self.roots.rotate(call)

    def root(self, call: Call) -> tuple[RootKey, int]:
        """The newest root key and how many versions still wait to be rewrapped."""
        return self.roots.newest(call)

    def refresh(self) -> None:
        """Learn of root keys that another replica has made."""
        self.roots.refresh()

    def chores(self) -> Iterator[tuple[str, Callable[[Call], None]]]:
        """What the background loop has to do now: (resource, work); each piece stands alone and may be repeated."""
        return self.roots.chores()

    def _move(self, call: Call, name: str, numbers: list[int], to: SecretVersionState) -> Secret:
        secret = self._permitted(call, name)
        check_numbers(numbers)
        if call.validate_only:
            for number in numbers:
                moved(self._store.get(SecretVersion, name, number), to, name, number)
            return secret
        call.note(state=to.value, count=len(numbers), version=numbers[0])

        def change(write: ports.Write) -> Secret:
            secret = there(write.get(Secret, name), name)
            self._permit_again(call, secret)
            for number in sorted(numbers):
                stored = write.get(SecretVersion, name, number)
                changed = moved(stored, to, name, number)
                if stored is not None and changed != stored:
                    write.replace(stored, changed)
            return write.replace(secret, replace(secret, updated_at=self._now()))

        return once(self._store, call, name, change, lambda write, _: there(write.get(Secret, name), name))

    def _permitted(self, call: Call, name: str) -> Secret:
        return self._allowed(call, name, self._store.get(Secret, check_path(name, "secret")))

    def _allowed(self, call: Call, name: str, secret: Secret | None) -> Secret:
        self._guard.check(call, of_secret(name, secret))
        return there(secret, name)

    def _permit_again(self, call: Call, secret: Secret) -> None:
        """Decide on the secret with other labels than it had; writes into the call only what denies."""
        if not self._guard.permits(call.principal, call.action, of_secret(secret.name, secret)):
            self._guard.check(call, of_secret(secret.name, secret))

    def _open(self, version: SecretVersion) -> dict[str, bytes]:
        if version.root not in self._sealing.roots:
            self.roots.refresh()
        try:
            fields = self._unseal(version)
        except WrongState:
            # It may have been rewrapped since it was read, and its root key be gone by now (P23).
            newer = self._store.get(SecretVersion, version.secret, version.number)
            if newer is None or newer.root == version.root:
                raise
            fields = self._unseal(newer)
        if tuple(sorted(fields)) != version.fields:
            raise damaged()
        return fields

    def _unseal(self, version: SecretVersion) -> dict[str, bytes]:
        return self._sealing.open(version.secret, version.number, version.root, version.data_key, version.sealed)

    def _under(self, prefix: str, after: str) -> list[Secret]:
        """Up to ``SCANNED`` secrets in a folder, and the one of the folder's own name, behind ``after``."""
        own = self._store.get(Secret, prefix) if prefix and not after else None
        start = (after,) if after else ()
        below = self._store.page(Secret, begins=_below(prefix), after=start, limit=SCANNED, sound_only=True)
        return [*([own] if own else []), *below]

    def _reads_beside(self, rows: list[Secret], prefix: str) -> dict[str, SecretRead]:
        """Who read them last: each has at most one row under its own name, so one page holds all of them."""
        reads = [read for secret in rows[:2] if (read := self._store.get(SecretRead, secret.name))]
        # Between a folder's own secret and those below it there can be others: the page begins at the second row.
        if len(rows) > 2:
            reads += self._store.page(
                SecretRead, begins=_below(prefix), after=(rows[1].name,), limit=SCANNED, sound_only=True
            )
        return {read.secret: read for read in reads}


def _read(name: str, principal: str, at: datetime) -> SecretRead:
    return SecretRead(secret=name, principal=principal, read_at=at)


def _below(prefix: str) -> str:
    """How the names of what is in a folder begin."""
    return f"{prefix}/" if prefix else ""
