"""What a look at a place finds: a difference between what is there and the broker's record of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from broker.core.kinds import Drift


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something at a place that is not as the broker's record has it."""

    key: str  # "" of what is the place's own
    version: int  # 0 of what is no version's
    remote_name: str  # "" in the HSM
    remote_version: str
    drift: Drift
    detail: str  # a sentence's part: what it is in this case
    found_at: datetime  # when it was found first


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftReport:
    """What the last look at a place has found: a target, or the HSM."""

    place: str
    checked_at: datetime
    findings: tuple[Finding, ...]
    revision: int = 1
