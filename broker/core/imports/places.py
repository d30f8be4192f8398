"""One place: a key version at a target under one name there, with its row and the operation that is at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from broker.core.errors import Unavailable
from broker.core.imports.arrival import Arrival, Found
from broker.core.imports.rules import EXPORTED, TERMS_UNSETTLED, disabled_by_us, in_progress
from broker.core.kinds import ImportState
from broker.core.model import Import, Operation
from broker.core.reasons import Reason
from broker.core.targets.copies import UNPROVEN

ARRIVAL_GRACE = timedelta(seconds=60)
"""How long an upload whose answer is missing may still be on its way; longer than any request to a target takes."""

UNDER_WAY = frozenset({ImportState.PENDING, ImportState.DISABLING})
"""The states of a row that an operation writes; in any other one something else has been decided meanwhile."""

NOT_TAKEN = frozenset({Reason.TARGET_THROTTLED, Reason.TARGET_CONFLICT})
"""Answers to an upload with which nothing is on its way any more."""

EXPORT = "export-key"

Place = tuple[str, int, str, str]


def subject_of(row: Import) -> str:
    """What the operation at a place is about; a remote name has no slash."""
    return f"import/{row.key}/{row.version}/{row.target}/{row.remote_name}"


def place_in(operation: Operation) -> Place:
    """The primary key of the row that an operation is about."""
    _, key, version, target, remote_name = operation.subject.split("/")
    return key, int(version), target, remote_name


def target_in(operation: Operation) -> str:
    """Whom an operation waits for."""
    return place_in(operation)[2]


def recalled(row: Import) -> Mapping[str, str]:
    """What an operation would remember of a row that has none, from why it says that it waits."""
    known = {"remote_version": row.remote_version} if row.remote_version else {}
    if row.failure == TERMS_UNSETTLED:
        return {**known, "proven": "1"}
    return {**known, "confirmed": "1"} if row.failure == UNPROVEN else known


def look(there: Arrival, memory: Mapping[str, str]) -> Found | None:
    """The remote version that is, or may be, what an attempt before has left at the target."""
    found = there.left() if "confirmed" in memory else there.find()
    known = memory.get("remote_version")
    return found or (there.named(known) if known else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """How a place was found: what an earlier attempt has left there.

    ``rows``: of all versions of the key at this target. ``operation``: the one of ``row`` that is not over.
    """

    row: Import | None
    rows: list[Import]
    operation: Operation | None = None

    @property
    def memory(self) -> Mapping[str, str]:
        """What that attempt knew."""
        if self.operation is not None:
            return self.operation.memory
        waits = self.row is not None and self.row.state in {ImportState.PENDING, ImportState.HELD}
        return recalled(self.row) if self.row is not None and waits else {}

    @property
    def is_there(self) -> bool:
        """Whether its upload was answered, or its key seen there: it is to be proven or disabled."""
        return self.operation is not None and not self.memory.keys().isdisjoint({"confirmed", "remote_version"})

    def proven(self, remote_version: str) -> bool:
        """Whether it had proven this remote version, and only the terms were left to be set."""
        return self.row is not None and "proven" in self.memory and self.row.remote_version == remote_version

    def disabled_for(self, remote_version: str) -> str:
        """Why it had put this remote version out of use; "" when that was somebody else's decision, or it is in use."""
        if self.row is None or self.row.remote_version != remote_version:
            return ""
        if self.operation is not None:
            return self.memory.get("disabled_for", "")
        if self.row.state is ImportState.DISABLED:  # its version is still good, or it would not be imported
            return Reason.REMOTE_KEY_DISABLED
        return self.row.failure if disabled_by_us(self.row) else ""

    def await_arrival(self, now: datetime) -> None:
        """Return when nothing of it can be on its way any more; else ``IMPORT_IN_PROGRESS`` (BY-15)."""
        row = self.row
        left = (row.started_at + ARRIVAL_GRACE - now).total_seconds() if row else 0
        if row is None or row.state is not ImportState.PENDING or left <= 0 or self._answered(row):
            return
        seconds = int(left) + 1
        if not row.failure:
            raise in_progress(f"an earlier upload may still arrive; try again in {seconds} s", seconds)
        raise Unavailable(
            row.failure,
            f"The target did not answer an earlier upload as it should ({row.failure}), and that may still arrive; see "
            f"that it works, and try again in {seconds} s.",
            retry_after_seconds=str(seconds),
        )

    def _answered(self, row: Import) -> bool:
        if self.operation is None:
            return row.failure in NOT_TAKEN | {EXPORTED, UNPROVEN}
        return self.is_there or self.operation.kind == EXPORT or self.operation.failure in NOT_TAKEN
