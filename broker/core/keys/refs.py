"""How a version's key is called in the HSM, and which are called so."""

from __future__ import annotations

from collections.abc import Iterator

from broker.core.kinds import VersionState
from broker.core.model import Key, KeyVersion
from broker.core.ports import KeyRef, Store
from broker.core.records import key_of


def ref(key: Key, version: KeyVersion) -> KeyRef:
    """The name of a version's key in the HSM."""
    name = f"{version.key}/{version.number}"
    return KeyRef(hsm_id=version.hsm_id, type=key.type, usage=key.usage, public_key=version.public_key, name=name)


def refs(store: Store, states: frozenset[VersionState]) -> Iterator[KeyRef]:
    """``ref`` of every version in one of these states."""
    after: tuple[str | int, ...] = ()
    while batch := store.page(KeyVersion, after=after, limit=100):
        after = key_of(batch[-1])
        for version in batch:
            key = store.get(Key, version.key)
            if key is not None and version.state in states:
                yield ref(key, version)
