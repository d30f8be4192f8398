"""Trust rules on a store in memory, and what a verified token says."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from broker.core.errors import Unauthenticated
from broker.core.identity import Verified
from broker.core.model import TrustRule
from broker.core.policy.cedar import FIRST_POLICY
from broker.core.policy.guard import Guard
from broker.core.trust.rules import TrustRules
from tests.fakes.calls import Clock, call, document, operator
from tests.fakes.memory_store import MemoryStore

ADMIN = operator("alice", "admins")


def verified(claims: dict[str, Any] | None = None, **changes: Any) -> Verified:
    parts: dict[str, Any] = {
        "issuer": "https://ci.example", "subject": "job", "audience": "broker", "token_id": "t1",
        "expires_at": datetime(2026, 5, 4, tzinfo=UTC), "claims": claims or {"project_id": "42"},
    }  # fmt: skip
    return Verified(**{**parts, **changes})


class House:
    """A store, the first policy, and the noun on it."""

    def __init__(self) -> None:
        self.clock, self.store = Clock(), MemoryStore()
        self.said: Verified | Unauthenticated = verified()
        self.rules = TrustRules(self.store, Guard(document(FIRST_POLICY + OWN)), self.verify, self.clock)

    def verify(self, _rule: TrustRule, _token: str) -> Verified:
        if isinstance(self.said, Unauthenticated):
            raise self.said
        return self.said

    def call(self, action: str, who: Any = ADMIN, **options: Any) -> Any:
        return call(f"TrustService/{action}", who, self.clock, **options)


OWN = """
@id("bob") permit (principal == Operator::"bob", action in [Action::"CreateTrustRule", Action::"UpdateTrustRule"],
resource) when { resource.pipeline == "deploy" };
"""
BOB = operator("bob")
