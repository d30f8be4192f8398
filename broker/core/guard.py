"""The one authoriser: every noun asks here before it looks anything up for the caller or touches anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.core.call import Call
from broker.core.model import Key, Operator, PolicyDocument, Principal, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """What is being acted on, as the policies see it. ``id`` is always a checked name."""

    kind: str  # the Cedar entity type: "Key", "Target", "Operator", "Broker"
    id: str
    attributes: Mapping[str, str | bool] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.kind.lower()}/{self.id}"


BROKER = Resource(kind="Broker", id="broker")
"""The resource of actions on the broker itself: lists, the policy, the audit heads, the HSM."""


def of_key(key: Key) -> Resource:
    """A key as the policies see it."""
    raise NotImplementedError


def of_unknown_key(name: str) -> Resource:
    """A key that does not exist, so that the permission is decided before its absence is told."""
    raise NotImplementedError


def of_target(target: Target) -> Resource:
    """A registered target as the policies see it."""
    raise NotImplementedError


def of_unknown_target(name: str) -> Resource:
    """A target that does not exist."""
    raise NotImplementedError


def of_operator(name: str, operator: Operator | None) -> Resource:
    """An operator as the policies see it, existing or not."""
    raise NotImplementedError


class Guard:
    """Decides by the policy document in force; deny unless a policy permits, deny on any evaluation error."""

    def __init__(self, document: PolicyDocument) -> None:
        raise NotImplementedError

    def load(self, document: PolicyDocument) -> None:
        """Put another document in force, at once for every thread; InvalidRequest ``POLICY_INVALID`` leaves the old one."""
        raise NotImplementedError

    def check(self, call: Call, resource: Resource) -> None:
        """Return if ``call.principal`` may do ``call.action`` to ``resource``; else PermissionDenied ``POLICY_DENIED``.

        Writes the resource, the decision, the deciding policy ids and the policy version into ``call`` either way.
        Called twice in one call (key, then target), the resource becomes "key/a,target/b" and both must be allowed.
        """
        raise NotImplementedError

    def permits(self, principal: Principal, action: str, resource: Resource) -> bool:
        """The same decision without a record of its own: for filtering lists and for explaining."""
        raise NotImplementedError
