"""Whether database, folder and token belong together: two tokens that were one once are not one any more."""

from __future__ import annotations

import time
from collections.abc import Iterator

from broker import row_key
from broker.config import Config
from broker.core.errors import NotFound, WrongState
from broker.core.keys import refs as key_refs
from broker.core.kinds import Purpose, VersionState
from broker.core.ports import Device, KeyRef, Store
from broker.core.reasons import Reason
from broker.core.secrets import root_rows
from broker.store.condition import Condition

SECONDS = 15.0
SHOWN = 3
_THERE = frozenset({VersionState.ENABLED})


def refuse_absent_keys(store: Store, device: Device) -> int:
    """How many of the keys in use were looked for, in at most ``SECONDS``, and found in the token.

    WrongState ``KEYS_NOT_IN_HSM`` names the first that were not: the token is another one, a copy that was made before
    these keys, or an older backup, and another broker that serves this database may have made them in another.
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
            Reason.KEYS_NOT_IN_HSM,
            f"{len(absent)} of {len(absent) + found} keys of the database are not in this token, first "
            f"{', '.join(absent[:SHOWN])}: it is another token than they were made in, a copy made before them, or an "
            "older backup. Name the right token, or put its newest backup back, on every host.",
        )
    return found


def _looked_for(store: Store, device: Device) -> Iterator[str]:
    """For each key "" when the token has it, else its name."""
    for number, ref in root_rows.known_roots(store).items():
        yield _name(device, Purpose.ROOT, ref, f"root/{number}")
    for key in key_refs.refs(store, _THERE):
        yield _name(device, Purpose.KEY, key, f"key/{key.name}")


def _name(device: Device, purpose: Purpose, ref: KeyRef, name: str) -> str:
    try:
        device.keyring(purpose).public_key(ref)
    except NotFound:
        return name
    return ""


def refuse_unknown_rows(config: Config, found: Condition) -> None:
    """Refuse to go on with rows that this folder has nothing to vouch for with.

    WrongState ``ROW_KEY_MISSING`` when rows have MACs under a key that is not here. ``DATABASE_NOT_OURS`` when they
    have none, as an earlier release left them, and the folder is a new one: somebody who had written to the database
    before could have put in a policy and an operator.
    """
    here = config.certificates
    if found.vouched and not any((here / name).exists() for name in (row_key.FILE, row_key.NEW)):
        raise WrongState(
            Reason.ROW_KEY_MISSING,
            f"{here / row_key.FILE} is not there, and the database's rows are vouched for by it: put it "
            "back from a backup if the database is this broker's; else it is another's, so name an empty one.",
        )
    if found.filled and not found.vouched and not (here / "audit.pem").exists():
        raise WrongState(
            Reason.DATABASE_NOT_OURS,
            "The database holds the rows of a broker of an earlier release, and this folder is new, so nobody vouches "
            "for them: run `broker init` for that broker's own folder, or name an empty database.",
        )
