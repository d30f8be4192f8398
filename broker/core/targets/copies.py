"""Copies of keys at targets, as the imports' rows tell of them."""

from __future__ import annotations

from broker.core import ports
from broker.core.kinds import ImportState
from broker.core.model import Import
from broker.core.reasons import Reason

UNPROVEN = "UNPROVEN"
"""Why an import is PENDING whose upload the target has confirmed, and then could not be asked about the key."""

MAX_ALARMS = 1000


def place_of(row: Import) -> tuple[str, int, str, str]:
    """The primary key of a row."""
    return row.key, row.version, row.target, row.remote_name


def alarms(store: ports.Store, target: str) -> list[Import]:
    """The imports of ``target`` ("": of all) whose key may be used there and should not be: unproven, or withdrawn."""
    where: dict[str, str | int] = {"target": target} if target else {}
    found: list[Import] = []
    kinds: tuple[dict[str, str | int], ...] = (
        {"state": ImportState.DISABLING.value},
        {"state": ImportState.PENDING.value, "failure": UNPROVEN},
        {"failure": Reason.TARGET_CANNOT_DISABLE.value},
    )
    for kind in kinds:
        found += store.page(Import, limit=MAX_ALARMS, where={**where, **kind}, sound_only=True)
    return list({place_of(row): row for row in found}.values())
