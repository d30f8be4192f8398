"""What a key must be for a change of it, and all of its versions."""

from __future__ import annotations

from broker.core.amiss import key_changed
from broker.core.errors import WrongState
from broker.core.kinds import KeyState, OperationState
from broker.core.model import Key, KeyVersion, Operation
from broker.core.policy.guard import of_key
from broker.core.ports import Store, Write
from broker.core.reasons import Reason
from broker.core.records import key_of

ENABLED = frozenset({KeyState.ENABLED})
USABLE = frozenset({KeyState.ENABLED, KeyState.DISABLED})
SCHEDULED = frozenset({KeyState.DESTROY_SCHEDULED, KeyState.HELD})
TABLES = frozenset({"keys", "key_versions"})
"""Where what is destroyed is looked up."""

STEP = 100
"""Versions that are read at a time."""


def require(key: Key, allowed: frozenset[KeyState]) -> None:
    """Return if the key is in one of these states; else WrongState ``KEY_STATE``."""
    if key.state not in allowed:
        wanted = " or ".join(sorted(allowed))
        raise WrongState(Reason.KEY_STATE, f"The key {key.name} is {key.state}; this needs it to be {wanted}.")


def as_decided(write: Write, decided: Key) -> Key:
    """The key as it stands now; WrongState unless it is still what the permission was decided on (AZ-15)."""
    key = write.get(Key, decided.name)
    if key is None or of_key(key) != of_key(decided):
        raise key_changed(decided.name)
    return key


def rotation_of(name: str) -> str:
    """What the rotation of a key everywhere is about; there is one at a time."""
    return f"key/{name}/rotation"


def refuse_rotating(live: Operation | None, name: str) -> None:
    """WrongState ``KEY_ROTATION_RUNNING`` while ``live`` brings the key's next version to its targets.

    A newer primary version would stay one when that arrives, and no target would have it. A rotation that is given up
    puts nothing in force any more.
    """
    if live is not None and live.state is OperationState.RUNNING:
        version, one = live.memory["version"], f"{live.subject}/{live.number}"
        raise WrongState(
            Reason.KEY_ROTATION_RUNNING,
            f"The rotation {one} brings version {version} of the key {name} to its targets, and none of them would "
            f"have a newer one that is made here only. `broker operation show {one}` says whom it waits for; `broker "
            f"key activate {name} --version {version}` puts that version in force now, `broker operation abort {one}` "
            "gives it up.",
        )


def versions_of(store: Store, name: str) -> list[KeyVersion]:
    """Every version of a key, oldest first."""
    found: list[KeyVersion] = []
    while len(found) % STEP == 0:
        rows = store.page(KeyVersion, under=(name,), after=key_of(found[-1]) if found else (), limit=STEP)
        if not rows:
            break
        found += rows
    return found


def key_named(operation: Operation) -> str:
    """The key that an operation is about."""
    return operation.subject.split("/")[1]
