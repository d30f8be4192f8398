"""Whether the keys that a database speaks of are in the token: two tokens that were one once are not one any more."""

from __future__ import annotations

import time
from collections.abc import Iterator

from broker.core import keys, roots
from broker.core.errors import NotFound, WrongState
from broker.core.kinds import Purpose, VersionState
from broker.core.model import Key, KeyVersion
from broker.core.ports import Device, KeyRef, Store

SECONDS = 15.0
SHOWN = 3
_THERE = frozenset({VersionState.ENABLED})


def refuse_absent_keys(store: Store, device: Device) -> int:
    """How many of the keys in use were looked for, in at most ``SECONDS``, and found in the token.

    WrongState ``KEYS_NOT_IN_HSM`` names the first that were not: the token is another one, a copy that was made before
    these keys, or an older backup, and whoever else serves this database may have made them in another.
    """
    found, absent = 0, []
    until = time.monotonic() + SECONDS
    for name in _looked_for(store, device):
        if name:
            absent.append(name)
        else:
            found += 1
        if time.monotonic() > until:
            break
    if absent:
        raise WrongState(
            "KEYS_NOT_IN_HSM",
            f"{len(absent)} of {len(absent) + found} keys of the database are not in this token, first "
            f"{', '.join(absent[:SHOWN])}: it is another token than they were made in, a copy made before them, or an "
            "older backup. Name the right token, or put its newest backup back, on every host.",
        )
    return found


def _looked_for(store: Store, device: Device) -> Iterator[str]:
    """For each key "" when the token has it, else its name."""
    for number, ref in roots.known_roots(store).items():
        yield _name(device, Purpose.ROOT, ref, f"root/{number}")
    after: tuple[str | int, ...] = ()
    while batch := store.page(KeyVersion, after=after, limit=100):
        after = (batch[-1].key, batch[-1].number)
        for version in batch:
            key = store.get(Key, version.key)
            if key is not None and version.state in _THERE:
                yield _name(device, Purpose.KEY, keys.ref(key, version), f"key/{version.key}/{version.number}")


def _name(device: Device, purpose: Purpose, ref: KeyRef, name: str) -> str:
    try:
        device.keyring(purpose).public_key(ref)
    except NotFound:
        return name
    return ""
