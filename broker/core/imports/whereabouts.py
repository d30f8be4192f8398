"""What a copy is good for: its row, held against the versions of its key and the last look at its target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from broker.core.findings import DriftReport
from broker.core.imports.rules import MISSING
from broker.core.kinds import Drift, ImportState, Standing
from broker.core.model import Import, Key
from broker.core.ports import Store
from broker.core.reasons import Reason
from broker.core.targets.copies import UNPROVEN

_STANDINGS = {
    ImportState.HELD: Standing.HELD,
    ImportState.DISABLING: Standing.UNPROVEN,
    ImportState.UNKNOWN: Standing.UNKNOWN,
    ImportState.GONE: Standing.GONE,
    ImportState.DISABLED: Standing.DISABLED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Whereabouts:
    """A copy, what it is good for, and how its target differed from the record when it was last looked at."""

    row: Import
    standing: Standing
    drifts: tuple[Drift, ...] = ()


def whereabouts(store: Store, rows: Sequence[Import]) -> list[Whereabouts]:
    """Of each of these copies."""
    keys = {name: store.get(Key, name) for name in {row.key for row in rows}}
    reports = {name: store.get(DriftReport, name) for name in {row.target for row in rows}}
    return [
        Whereabouts(row=row, standing=standing(row, keys[row.key]), drifts=_drifts(row, reports[row.target]))
        for row in rows
    ]


def standing(row: Import, key: Key | None) -> Standing:
    """What it is good for."""
    if row.failure == Reason.TARGET_CANNOT_DISABLE and row.state is not ImportState.DISABLING:
        return Standing.STILL_ENABLED
    if row.state is ImportState.PENDING:
        return Standing.UNPROVEN if row.failure == UNPROVEN else Standing.PENDING
    if row.state is ImportState.FAILED:
        return Standing.MISSING if row.failure == MISSING else Standing.FAILED
    if row.state is not ImportState.PROVEN:
        return _STANDINGS[row.state]
    primary = key.primary if key else row.version
    if row.version == primary:
        return Standing.CURRENT
    return Standing.BEHIND if row.version < primary else Standing.AHEAD


def _drifts(row: Import, report: DriftReport | None) -> tuple[Drift, ...]:
    copy = (row.key, row.version, row.remote_name)
    found = report.findings if report else ()
    return tuple(one.drift for one in found if (one.key, one.version, one.remote_name) == copy)
