"""The rows and the files of the broker's own keys, brought together before a broker stands on either."""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import replace
from datetime import datetime

from broker import first, own_files, own_keys
from broker.config import Config
from broker.core.authorities.known import MOST, OwnKeys, rows_of
from broker.core.authorities.plans import OVERLAP
from broker.core.errors import AlreadyExists, BrokerError, NotFound
from broker.core.kinds import Own, OwnKeyState
from broker.core.once import last_write
from broker.core.own_key import OwnKey
from broker.core.ports import Device, Now, Store, Write
from broker.row_key import row_key
from broker.store.restored import nobody
from broker.store.sql import SqlStore


def check(config: Config, device: Device, now: Now) -> None:
    """As ``check_internal_keys``; files that are older than a rotation are brought to what the rows say first.

    The rows are believed for that, since the token itself has opened the key that vouches for them.
    """
    try:
        own_keys.check_internal_keys(config, device)
    except NotFound as missing:
        if not _caught_up(config, device, now, missing):
            raise
        own_keys.check_internal_keys(config, device)


def _caught_up(config: Config, device: Device, now: Now, missing: NotFound) -> bool:
    try:
        key = row_key(config, device)
        with closing(SqlStore(config.store, key, now, nobody, role="check", passing=True)) as store:
            own = OwnKeys(store, device, own_files.founding(config), now)
            return own_files.follow(config, own)
    except BrokerError as fault:
        raise missing from fault  # the token is another, or an older one: that is the cause


def restore(config: Config, device: Device, store: Store, now: Now) -> int:
    """Write what the files know of rotations and the rows do not, as after a restore; how many rows.

    Each version is held against the token as it is read here. A file vouches for nothing: what the token does not hold
    is destroyed, and no former key is taken for longer than one that was followed just now.
    """
    read = [(one, own_keys.holds(config, device, one)) for one in own_files.mirror(config)]
    there = [_believed(one, now(), held=held) for one, held in read if held or one.state is not OwnKeyState.NEXT]
    if not own_files.behind(rows_of(store), there):
        return 0
    call = first.call("-/OwnKeys", "own/*", now)
    with suppress(AlreadyExists), last_write(store, call) as write:  # another process of this host was faster
        count = sum(_put(write, one) for one in there)
        _refuse_none_in_force(config, write, {Own(one.name) for one in there})
        write.note(count=count)
        return count
    return 0


def _put(write: Write, one: OwnKey) -> bool:
    stored = write.get(OwnKey, one.name, one.version)
    if stored is None:
        write.add(one)
        return True
    if stored.hsm_id != one.hsm_id or not own_files.behind([stored], [one]):
        return False
    write.replace(stored, replace(one if stored.state in _COMING else _ended(stored, one), revision=stored.revision))
    return True


_COMING = frozenset({OwnKeyState.PENDING, OwnKeyState.NEXT})


def _ended(stored: OwnKey, one: OwnKey) -> OwnKey:
    """A row that was in force says itself what the key is; the file tells what became of it."""
    return replace(stored, state=one.state, until=one.until, sealed=stored.sealed if one.sealed else None)


def _believed(one: OwnKey, now: datetime, *, held: bool) -> OwnKey:
    if not held:
        return replace(one, state=OwnKeyState.DESTROYED, sealed=None, until=min(one.until or now, now))
    if one.state is not OwnKeyState.FORMER:
        return replace(one, until=None)
    latest = now + OVERLAP[Own(one.name)]
    return replace(one, until=min(one.until or latest, latest))


def _refuse_none_in_force(config: Config, write: Write, names: set[Own]) -> None:
    """WrongState ``FILE_DAMAGED`` for a file that ends the version in force and names none that came after it."""
    for name in names:
        rows = write.page(OwnKey, limit=MOST + 1, where={"name": name.value})
        if all(one.state is not OwnKeyState.ACTIVE for one in rows):
            raise own_files.not_written(config.certificates / own_files.FILE)
