"""The rows and the files of the broker's own keys, brought together before a broker stands on either."""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import replace

from broker import first, own_files, own_keys
from broker.config import Config
from broker.core.authorities.known import OwnKeys, rows_of
from broker.core.errors import AlreadyExists, BrokerError, NotFound
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


def restore(config: Config, store: Store, now: Now) -> int:
    """Write what the files know of rotations and the rows do not, as after a restore; how many rows.

    The token has just been held against the files: it has the very keys of which they speak, under their names.
    """
    there = own_files.mirror(config)
    if not own_files.behind(rows_of(store), there):
        return 0
    call = first.call("-/OwnKeys", "own/*", now)
    with suppress(AlreadyExists), last_write(store, call) as write:  # another process of this host was faster
        count = sum(_put(write, one) for one in there)
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
    write.replace(stored, replace(one, revision=stored.revision))
    return True
