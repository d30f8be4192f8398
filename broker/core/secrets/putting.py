"""New versions of secrets: put whole, or made of the latest one with some fields changed.

Exactly one writer wins each number. A patch reads what it is made of inside the broker and hands none of it out: who
may patch learns no value, and changes no other field by what another writer has put meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from broker.core import ports, receipts
from broker.core.amiss import no_field, no_secret, no_secret_version
from broker.core.call import Call
from broker.core.errors import InvalidRequest, WrongState
from broker.core.model import Receipt, Secret, SecretVersion
from broker.core.names import check_field, check_labels, check_path
from broker.core.once import last_write, once
from broker.core.policy.guard import Guard, of_secret
from broker.core.quota import check_versions
from broker.core.reasons import Reason
from broker.core.records import renewed
from broker.core.secrets.references import MAX_NUMBER
from broker.core.secrets.roots import Roots
from broker.core.secrets.sealing import Sealing
from broker.core.secrets.value_macs import ValueMacs
from broker.core.secrets.versions import DESTROYED, ENABLED, gone

MAX_FIELDS = 32
MAX_BYTES = 64 * 1024

ATTEMPTS = 64
"""How often a write that names no version is sealed anew because another one was faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A secret with its new version, and what it had before and has no more: fields, and a time of expiry."""

    secret: Secret
    dropped: tuple[str, ...]
    dropped_expiry: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """What is to be put; ``repr`` shows no value. ``given``: the values that the request brought, of all the fields."""

    name: str
    fields: Mapping[str, bytes]
    given: Mapping[str, bytes]
    expected: int | None
    labels: dict[str, str]
    expires_at: datetime | None
    patched: bool  # made of the version before, which must still be there; labels and time of expiry stay

    def __repr__(self) -> str:
        return f"_Wish({self.name!r})"


class _Overtaken(Exception):
    """Another version came first; ``latest`` is its number. Never leaves this module."""

    def __init__(self, latest: int) -> None:
        super().__init__(latest)
        self.latest = latest


class Putting:
    """What writes versions of secrets. ``opened`` gives the fields of a stored version."""

    def __init__(
        self,
        store: ports.Store,
        sealing: Sealing,
        guard: Guard,
        now: ports.Now,
        roots: Roots,
        opened: Callable[[SecretVersion], dict[str, bytes]],
    ) -> None:
        self._store = store
        self._sealing = sealing
        self._guard = guard
        self._now = now
        self._roots = roots
        self._opened = opened
        self._macs = ValueMacs(sealing)

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
        """As ``Secrets.put``."""
        seen = self._store.get(Secret, check_path(name, "secret"))
        wish = _Wish(
            name=name, fields=fields, given=fields, expected=expected_version, labels=check_labels(labels),
            expires_at=expires_at, patched=False,
        )  # fmt: skip
        draft = self._draft(wish, seen)
        self._permit(call, seen or draft)
        if seen and not _same_to_policies(seen, draft):
            self._permit_again(call, draft)
        self._check(wish)
        if call.validate_only:
            return self._tried(wish, seen)
        number = draft.latest if expected_version is None else expected_version + 1
        for _ in range(ATTEMPTS):
            try:
                return self._put(call, wish, number)
            except _Overtaken as overtaken:
                number = overtaken.latest + 1
        raise _too_many()

    def patch(
        self,
        call: Call,
        name: str,
        fields: Mapping[str, bytes],
        remove: list[str],
        *,
        expected_version: int | None,
    ) -> Written:
        """As ``Secrets.patch``."""
        self._guard.check(call, of_secret(name, self._store.get(Secret, check_path(name, "secret"))))
        _check_patch(fields, remove)
        before = self._before(call, name, fields)
        if before is not None:
            return before
        for _ in range(ATTEMPTS):
            ((secret, version),) = self._store.secrets([(name, 0)])
            wish = _Wish(
                name=name, fields=self._patched(name, secret, version, fields, remove), given=fields,
                expected=expected_version, labels={}, expires_at=None, patched=True,
            )  # fmt: skip
            self._check(wish)
            if call.validate_only:
                return self._tried(wish, secret)
            try:
                return self._put(call, wish, version.number + 1 if version else 1)
            except _Overtaken:
                continue
        raise _too_many()

    def _patched(
        self,
        name: str,
        secret: Secret | None,
        version: SecretVersion | None,
        fields: Mapping[str, bytes],
        remove: list[str],
    ) -> dict[str, bytes]:
        """The fields of the next version: those of the latest one, changed."""
        there(secret, name, self._now())
        if version is None:
            raise no_secret_version(name, 0)
        if version.state is not ENABLED:
            raise gone(version)
        if lacking := [field for field in remove if field not in version.fields]:
            raise no_field(name, version.number, lacking[0])
        return {field: value for field, value in self._opened(version).items() if field not in remove} | dict(fields)

    def _before(self, call: Call, name: str, fields: Mapping[str, bytes]) -> Written | None:
        """What this very request has made already: it is not made again of what it made."""
        if not call.request_id or self._store.get(Receipt, str(call.principal), call.request_id) is None:
            return None
        with last_write(self._store, call) as write:
            receipt = receipts.replay(write, call)
            if receipt is None:
                raise _too_many()  # forgotten in this moment
            return self._again(call, write, name, fields, receipt)

    def _tried(self, wish: _Wish, seen: Secret | None) -> Written:
        draft = self._draft(wish, seen)
        _expect(wish, seen, draft.latest)
        check_versions(self._store, wish.name, draft.latest)
        before = self._store.get(SecretVersion, wish.name, seen.latest) if seen else None
        return Written(secret=draft, dropped=_dropped(before, wish.fields), dropped_expiry=_unlimited(seen, draft))

    def _draft(self, wish: _Wish, stored: Secret | None) -> Secret:
        now = self._now()
        if stored is None:
            return Secret(
                name=wish.name, labels=wish.labels, latest=1, created_at=now, updated_at=now, expires_at=wish.expires_at
            )
        return renewed(
            stored,
            labels=wish.labels or stored.labels,
            latest=stored.latest + 1,
            updated_at=now,
            expires_at=stored.expires_at if wish.patched else wish.expires_at,
            renew_at=now + timedelta(seconds=stored.max_age) if stored.max_age else None,
        )

    def _check(self, wish: _Wish) -> None:
        if not 1 <= len(wish.fields) <= MAX_FIELDS:
            raise InvalidRequest(Reason.FIELDS_INVALID, f"A secret has 1 to {MAX_FIELDS} fields; send that many.")
        for name in wish.fields:
            check_field(name)
        if sum(map(len, wish.fields.values())) > MAX_BYTES:
            raise InvalidRequest(
                Reason.SECRET_TOO_LARGE, f"The values of a secret are at most {MAX_BYTES} bytes in all."
            )
        if wish.expected is not None and not 0 <= wish.expected < MAX_NUMBER:
            raise InvalidRequest(
                Reason.VERSION_INVALID,
                "The expected version is no number that a version has; 0 says that there is none yet.",
            )
        if wish.expires_at is not None and wish.expires_at <= self._now():
            raise InvalidRequest(Reason.EXPIRY_PAST, "The time of expiry is over already; name one in the future.")

    def _put(self, call: Call, wish: _Wish, number: int) -> Written:
        learnt = self._roots.learnt()
        root, data_key, sealed = self._sealing.seal(wish.name, number, wish.fields)
        values_mac = self._macs.of(call, wish.name, wish.given)
        self._macs.bind(call, wish.name, wish.given)
        version = SecretVersion(
            secret=wish.name,
            number=number,
            state=ENABLED,
            fields=tuple(sorted(wish.fields)),
            root=root,
            data_key=data_key,
            sealed=sealed,
            author=str(call.principal),
            created_at=self._now(),
        )

        def add(write: ports.Write) -> Written:
            written = self._add(call, wish, version, write)
            self._roots.check_sure(learnt)
            return written

        def again(write: ports.Write, receipt: Receipt) -> Written:
            return self._again(call, write, wish.name, wish.given, receipt)

        return once(self._store, call, wish.name, add, again, version=number, values_mac=values_mac)

    def _again(
        self, call: Call, write: ports.Write, name: str, given: Mapping[str, bytes], receipt: Receipt
    ) -> Written:
        """What the request has made; refused when its id was used for other values."""
        secret = there(write.get(Secret, name), name)
        version, before = (write.get(SecretVersion, name, receipt.version - back) for back in (0, 1))
        self._check_same(call, name, given, receipt, version)
        return Written(secret=secret, dropped=_dropped(before, version.fields) if version else ())

    def _check_same(
        self, call: Call, name: str, given: Mapping[str, bytes], receipt: Receipt, version: SecretVersion | None
    ) -> None:
        """Refuse a request id that was used for other values, also once the version that it made is destroyed."""
        kept = receipt.values_mac
        same = self._macs.same(kept, call, name, given) if kept is not None else None
        if same is None and version and version.state is not DESTROYED:
            opened = self._opened(version)
            same = {field: opened.get(field) for field in given} == dict(given)
        if same is False or (same is None and kept is not None):  # what cannot be told any more is refused
            raise receipts.reused()

    def _add(self, call: Call, wish: _Wish, version: SecretVersion, write: ports.Write) -> Written:
        stored = write.get(Secret, wish.name)
        _expect(wish, stored, version.number)
        check_versions(self._store, wish.name, version.number)
        secret = self._draft(wish, stored)
        if stored and not _same_to_policies(stored, secret):
            self._permit_again(call, stored)
        self._permit_again(call, secret)
        before = write.get(SecretVersion, wish.name, stored.latest) if stored else None
        if wish.patched and before is not None and before.state is not ENABLED:  # its values were taken away meanwhile
            raise gone(before)
        if stored is None:
            write.add(secret)
        else:
            secret = write.replace(stored, secret)
        write.add(version)
        write.note(version=version.number)
        return Written(secret=secret, dropped=_dropped(before, wish.fields), dropped_expiry=_unlimited(stored, secret))

    def _permit(self, call: Call, secret: Secret) -> None:
        self._guard.check(call, of_secret(secret.name, secret))

    def _permit_again(self, call: Call, secret: Secret) -> None:
        """Decide on the secret with other labels than it had; writes into the call only what denies."""
        if not self._guard.permits(call.principal, call.action, of_secret(secret.name, secret)):
            self._permit(call, secret)


def _same_to_policies(one: Secret, other: Secret) -> bool:
    """Whether a decision on the one is the decision on the other: policies know a secret by name and labels."""
    return (one.name, one.labels) == (other.name, other.labels)


def there(secret: Secret | None, name: str, now: datetime | None = None) -> Secret:
    """The secret; NotFound, or WrongState when it has expired by ``now``."""
    if secret is None:
        raise no_secret(name)
    if now is not None and secret.expires_at is not None and secret.expires_at <= now:
        raise WrongState(
            Reason.SECRET_EXPIRED,
            f"The secret {name} expired at {secret.expires_at:%Y-%m-%dT%H:%M:%SZ}; the operator who keeps it writes "
            f"all its fields anew (`broker secret put {name}`).",
        )
    return secret


def _check_patch(fields: Mapping[str, bytes], remove: list[str]) -> None:
    if not fields and not remove:
        raise InvalidRequest(Reason.FIELDS_INVALID, "Nothing is to be changed; name a field to set or to remove.")
    if len(set(remove) | set(fields)) < len(remove) + len(fields):
        raise InvalidRequest(Reason.FIELDS_INVALID, "A field is named twice; set it or remove it, once.")
    if len(remove) > MAX_FIELDS:
        raise InvalidRequest(Reason.FIELDS_INVALID, f"A secret has 1 to {MAX_FIELDS} fields; name no more to remove.")
    for name in (*fields, *remove):
        check_field(name)


def _dropped(before: SecretVersion | None, fields: Mapping[str, bytes] | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(field for field in before.fields if field not in fields) if before else ()


def _unlimited(before: Secret | None, after: Secret) -> datetime | None:
    return before.expires_at if before and after.expires_at is None else None


def _expect(wish: _Wish, stored: Secret | None, number: int) -> None:
    latest = stored.latest if stored else 0
    if wish.expected is not None and wish.expected != latest:
        raise WrongState(
            Reason.VERSION_MISMATCH,
            f"The latest version is {latest} and not the expected one; read it again and make the change in that one.",
            latest=str(latest),
        )
    if latest + 1 != number:
        raise _Overtaken(latest)


def _too_many() -> WrongState:
    return WrongState(
        Reason.CHANGED_MEANWHILE,
        "Others write this secret all the time, so this was not done; find out who, then send it again.",
    )
