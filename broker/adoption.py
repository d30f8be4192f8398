"""`init` on the token of an earlier release: its keys get the labels that bind them, once.

The broker's own keys are known by the files that ``init`` wrote, root keys and callers' keys by their rows. That rows
are believed is what makes this a part of the set-up and of nothing else: look at the keys before you run it.
"""

from __future__ import annotations

from collections.abc import Iterator

from broker import own_keys
from broker.config import Config
from broker.core import keys, roots
from broker.core.kinds import Purpose, VersionState
from broker.core.model import Key, KeyVersion, RootKey
from broker.core.ports import KeyRef, Store
from broker.hsm.pkcs11 import Pkcs11Hsm

_THERE = frozenset({VersionState.PENDING, VersionState.ENABLED})


def adopt(config: Config, store: Store, device: Pkcs11Hsm) -> int:
    """How many keys were given their labels; 0 when there was nothing to do."""
    return device.adopt(_known(config, store))


def _known(config: Config, store: Store) -> Iterator[tuple[Purpose, KeyRef]]:
    for purpose in own_keys.INTERNAL_KEYS:
        if (config.certificates / f"{purpose}.pem").exists():
            yield purpose, own_keys.internal_key(config, purpose)
    for root in store.page(RootKey, limit=roots.MOST + 1):
        yield Purpose.ROOT, roots.ref(root)
    after: tuple[str | int, ...] = ()
    while batch := store.page(KeyVersion, after=after, limit=100):
        after = (batch[-1].key, batch[-1].number)
        for version in batch:
            key = store.get(Key, version.key)
            if key is not None and version.state in _THERE:
                yield Purpose.KEY, keys.ref(key, version)
