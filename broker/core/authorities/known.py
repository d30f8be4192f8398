"""The broker's own keys as a process knows them: which version makes, which ones are still taken.

A key that was never rotated has no row: its version 1 is what ``init`` made (``founding``). Each process reads the rows
again every second, so a version is NEXT, taken by everybody, for longer than that before it is ACTIVE.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from threading import Lock

from broker.core import ports
from broker.core.errors import WrongState
from broker.core.kinds import KeyType, KeyUsage, Own, OwnKeyState, Purpose
from broker.core.operators.authority import Authority
from broker.core.own_key import OwnKey
from broker.core.ports import KeyRef
from broker.core.reasons import Reason

MOST = 200
"""Versions of one key that there may ever be."""

INTERNAL_KEYS = {
    Purpose.AUDIT: b"broker/audit/001",
    Purpose.OPERATOR_CA: b"broker/oper-ca/1",
    Purpose.SERVER_CA: b"broker/tls-ca/01",
}
"""The CKA_IDs of the versions that ``init`` makes: in ``RESERVED_IDS``, so that no row of a caller's key can name them
(HS-17). The purpose is also the name of the file in the folder of certificates."""

Founding = Mapping[Own, OwnKey]
"""What ``init`` made, by the files that it wrote."""


def ref(own: OwnKey) -> KeyRef:
    """The name of a version in the HSM; the first one has none in its label, as ``init`` makes it."""
    return KeyRef(
        hsm_id=own.hsm_id,
        type=KeyType.EC_P256,
        usage=KeyUsage.SIGN,
        public_key=own.public_key,
        name="" if own.version == 1 else str(own.version),
    )


def rows_of(store: ports.Store) -> list[OwnKey]:
    """Every version on record that can be read, by name and version."""
    return store.page(OwnKey, limit=MOST * len(Own), sound_only=True)


class OwnKeys:
    """What this process knows of them. ``refresh`` is called every second."""

    def __init__(self, store: ports.Store, device: ports.Device, founding: Founding, now: ports.Now) -> None:
        self._store = store
        self._device = device
        self._founding = founding
        self._now = now
        self._reading = Lock()
        self._versions: Mapping[Own, tuple[OwnKey, ...]] = {}
        self._authorities: dict[tuple[str, int], Authority] = {}
        self.refresh()

    def refresh(self) -> bool:
        """Read the rows; whether anything is otherwise than before."""
        with self._reading:
            rows = rows_of(self._store)
            found = {name: self._newer(name, self.of(name, rows)) for name in self._founding}
            changed, self._versions = found != self._versions, found
            return changed

    def _newer(self, name: Own, found: tuple[OwnKey, ...]) -> tuple[OwnKey, ...]:
        """What was read, unless it is less than what is known: then somebody has damaged or removed a row.

        A process that serves goes on with the key that it has; the inspection tells of the row.
        """
        known = _active(self._versions.get(name, ()))
        active = _active(found)
        return found if known is None or (active and active.version >= known.version) else self._versions[name]

    def of(self, name: Own, rows: list[OwnKey]) -> tuple[OwnKey, ...]:
        """The versions of one key, oldest first."""
        own = tuple(row for row in rows if row.name == name)
        return own or (self._founding[name],)

    def versions(self, name: Own) -> tuple[OwnKey, ...]:
        """All that there have been, oldest first."""
        return self._versions.get(name, ())

    def all(self) -> list[OwnKey]:
        """Every version of every key."""
        return [one for name in Own for one in self.versions(name)]

    def active(self, name: Own) -> OwnKey:
        """The one that makes."""
        active = _active(self.versions(name))
        if active is None:
            raise WrongState(
                Reason.OWN_KEY_MISSING,
                f"No version of the broker's key {name} is in force that its database vouches for; `broker doctor "
                "--config` on its host lists the rows at fault.",
            )
        return active

    def taken(self, name: Own) -> list[OwnKey]:
        """Those whose work is taken now: the one in force first, then the others, the newest first."""
        now = self._now()
        others = [one for one in reversed(self.versions(name)) if _taken(one, now)]
        return [self.active(name), *others]

    def authority(self, name: Own) -> Authority:
        """A CA, ready to sign with its version in force."""
        active = self.active(name)
        known = self._authorities.get((name, active.version))
        if known is None or known.certificate != active.certificate.encode():
            known = Authority(self._device.keyring(name.purpose), ref(active), active.certificate.encode())
            self._authorities = {**self._authorities, (name, active.version): known}
        return known

    def certificates(self, name: Own) -> bytes:
        """Whom to trust for what a CA signs, PEM, the one in force first."""
        return "".join(one.certificate for one in self.taken(name)).encode()

    def handovers(self) -> list[Mapping[str, str]]:
        """How the audit key came from one version to the next, oldest first."""
        return [one.handover for one in self.versions(Own.AUDIT) if one.handover]


LINKS = 8
"""How many are shown to a client at most: each costs it a signature, and a decade needs two."""


def links_of(versions: Iterable[OwnKey]) -> bytes:
    """What leads from earlier versions of a CA to the one in force, PEM, the newest first."""
    made = [one.link for one in versions if one.state is not OwnKeyState.NEXT and one.link]
    return "".join(made[::-1][:LINKS]).encode()


def _active(versions: Iterable[OwnKey]) -> OwnKey | None:
    return next((one for one in reversed(tuple(versions)) if one.state is OwnKeyState.ACTIVE), None)


def _taken(one: OwnKey, now: datetime) -> bool:
    if one.state is OwnKeyState.FORMER:
        return one.until is None or one.until > now
    return one.state is OwnKeyState.NEXT
