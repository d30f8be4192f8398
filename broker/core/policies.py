"""Policies: the Cedar document in force, its history, and why something is denied."""

from __future__ import annotations

from dataclasses import dataclass

from broker.core import ports
from broker.core.call import Call
from broker.core.guard import Guard
from broker.core.model import PolicyDocument


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What would be decided, and by which policies."""

    allowed: bool
    policies: tuple[str, ...]
    policy_version: int
    sentence: str


class Policies:
    """The noun behind PolicyService."""

    def __init__(self, store: ports.Store, guard: Guard, now: ports.Now) -> None:
        raise NotImplementedError

    def get(self, call: Call, version: int) -> PolicyDocument:
        raise NotImplementedError

    def set(self, call: Call, text: str, expected_version: int) -> PolicyDocument:
        """Refuses a text under which the caller could not set the policy again (``POLICY_LOCKS_YOU_OUT``)."""
        raise NotImplementedError

    def explain(self, call: Call, operator: str, action: str, kind: str, name: str) -> Explanation:
        """``kind``: "Key", "Target", "Operator" or "Broker"."""
        raise NotImplementedError
