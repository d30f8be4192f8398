"""The keys a vault holds: names, versions, deletion and recovery. Knows no HTTP."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from . import material as materials
from .attributes import Attributes
from .material import Material
from .refusals import Refused, deleted_but_recoverable, forbidden, key_not_found

RETENTION = 90 * 86400


@dataclass
class KeyVersion:
    """One version of a key, with its private half. Tests may look into it and lie with it."""

    name: str
    version: str
    kty: str
    material: Material = field(repr=False)
    key_ops: list[str]
    attributes: Attributes
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def enabled(self) -> bool:
        """Whether it can be used."""
        return self.attributes.enabled

    @property
    def public_key(self) -> bytes | None:
        """SubjectPublicKeyInfo, DER; None for a symmetric key."""
        return materials.public_key(self.material)


@dataclass
class Named:
    """A key: its versions, oldest first, and when it was deleted."""

    name: str
    versions: list[KeyVersion] = field(default_factory=list)
    deleted: int | None = None


class Shelf:
    """All keys of one vault. Names are case-insensitive; a version is never deleted alone."""

    def __init__(self, now: Callable[[], int], *, most_versions: int | None, purgeable: bool) -> None:
        self._now = now
        self._most = most_versions
        self.purgeable = purgeable
        self._keys: dict[str, Named] = {}

    def put(
        self, name: str, kty: str, material: Material, key_ops: list[str], attributes: Attributes, tags: dict[str, str]
    ) -> KeyVersion:
        """A new version of that key, or a new key."""
        self.check_room(name)
        key = self._keys.setdefault(name.lower(), Named(name))
        version = KeyVersion(key.name, secrets.token_hex(16), kty, material, key_ops, attributes, tags)
        key.versions.append(version)
        return version

    def check_room(self, name: str) -> None:
        """Return if the name can take another version."""
        key = self._keys.get(name.lower())
        if key is None:
            return
        if key.deleted is not None:
            raise deleted_but_recoverable(key.name)
        if self._most is not None and len(key.versions) >= self._most:
            raise Refused(400, "BadParameter", f"Key {key.name} has {self._most} versions, and more cannot be made.")

    def versions(self, name: str) -> list[KeyVersion]:
        """Oldest first; [] when there is no such key or it is deleted."""
        key = self._keys.get(name.lower())
        return [] if key is None or key.deleted is not None else list(key.versions)

    def get(self, name: str, version: str = "") -> KeyVersion:
        """That version, the newest for ""."""
        held = self.versions(name)
        found = held[-1:] if not version else [each for each in held if each.version == version.lower()]
        if not found:
            raise key_not_found(f"{name}/{version}" if version else name)
        return found[0]

    def newest(self) -> list[KeyVersion]:
        """The newest version of each key that is not deleted, by name."""
        return [key.versions[-1] for _, key in sorted(self._keys.items()) if key.deleted is None]

    def deleted(self) -> Iterator[Named]:
        """The deleted keys, by name."""
        return (key for _, key in sorted(self._keys.items()) if key.deleted is not None)

    def get_deleted(self, name: str) -> Named:
        """That deleted key."""
        key = self._keys.get(name.lower())
        if key is None or key.deleted is None:
            raise key_not_found(name)
        return key

    def delete(self, name: str) -> Named:
        """The whole key becomes unusable; its name stays taken."""
        self.get(name)
        key = self._keys[name.lower()]
        key.deleted = self._now()
        return key

    def recover(self, name: str) -> KeyVersion:
        """Undo a deletion."""
        key = self.get_deleted(name)
        key.deleted = None
        return key.versions[-1]

    def purge(self, name: str) -> None:
        """Forget a deleted key for good."""
        self.get_deleted(name)
        if not self.purgeable:
            raise forbidden("PurgeProtected", "Purge protection is on: the key goes when its retention is over.")
        del self._keys[name.lower()]


def scheduled_purge(key: Named) -> dict[str, Any]:
    """When a key was deleted and when it will go by itself."""
    return {"deletedDate": key.deleted, "scheduledPurgeDate": (key.deleted or 0) + RETENTION}
