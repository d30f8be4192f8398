"""When a key is rotated by itself, as it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from broker.core.kinds import ScheduleState
from broker.core.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySchedule:
    """When a key is rotated by itself (``core.schedules``). All spans are seconds."""

    key: str
    state: ScheduleState
    every: int
    jitter: int
    blackouts: tuple[str, ...]  # as ``schedules.blackouts`` reads them
    warn: int  # how long before it is due that is told
    grace: int  # of the rotation
    set_by: str  # "operator/alice": in whose name it is rotated
    version: int  # the primary version that ``next_at`` was reckoned from
    next_at: datetime
    look_at: datetime  # when the background looks at it next
    failure: str  # why the newest attempt was refused, "" if it was not
    created_at: datetime
    approvals: int | None = None  # how many it was set with; None: none, of what was set before this was written down
    revision: int = 1

    @property
    def lacks_approvals(self) -> bool:
        """Whether rotating took more of them, when that was looked at, than it was set with."""
        return self.failure == Reason.APPROVAL_REQUIRED

    @property
    def is_held(self) -> bool:
        """Whether nothing is rotated until it is set again."""
        return self.state is ScheduleState.HELD or self.lacks_approvals
