"""Copies of keys at targets, as the imports' rows tell of them."""

from __future__ import annotations

from broker.core import ports
from broker.core.kinds import ImportState
from broker.core.model import Import

UNPROVEN = "UNPROVEN"
"""Why an import is PENDING whose upload the target has confirmed, and then could not be asked about the key."""

MAX_ALARMS = 1000


def place_of(row: Import) -> tuple[str, int, str, str]:
    """The primary key of a row."""
    return row.key, row.version, row.target, row.remote_name


def alarms(store: ports.Store, target: str) -> list[Import]:
    """The imports of ``target`` ("": of all) whose key may be used there and should not be."""
    where: dict[str, str | int] = {"target": target} if target else {}
    found: list[Import] = []
    for state, more in ((ImportState.DISABLING, {}), (ImportState.PENDING, {"failure": UNPROVEN})):
        found += store.page(Import, limit=MAX_ALARMS, where={**where, "state": state.value, **more}, sound_only=True)
    return found
