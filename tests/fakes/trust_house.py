"""Trust rules on a store in memory, and what a verified token says."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from broker.core.errors import Unauthenticated
from broker.core.identity import Verified
from broker.core.model import TrustRule
from broker.core.policy.cedar import FIRST_POLICY
from tests.fakes.calls import ADMIN, operator
from tests.worlds.world import World


def verified(claims: dict[str, Any] | None = None, **changes: Any) -> Verified:
    parts: dict[str, Any] = {
        "issuer": "https://ci.example", "subject": "job", "audience": "broker", "token_id": "t1",
        "expires_at": datetime(2026, 5, 4, tzinfo=UTC), "claims": claims or {"project_id": "42"},
    }  # fmt: skip
    return Verified(**{**parts, **changes})


class House(World):
    """A world with trust rules, in which tokens say what the test has them say."""

    def __init__(self) -> None:
        self.said: Verified | Unauthenticated = verified()
        super().__init__(policy=FIRST_POLICY + OWN, verify=self.verify)

    def verify(self, _rule: TrustRule, _token: str) -> Verified:
        if isinstance(self.said, Unauthenticated):
            raise self.said
        return self.said

    def call(self, action: str, who: Any = ADMIN, **options: Any) -> Any:
        return self.asked(f"TrustService/{action}", who, **options)


OWN = """
@id("bob") permit (principal == Operator::"bob", action in [Action::"CreateTrustRule", Action::"UpdateTrustRule"],
resource) when { resource.pipeline == "deploy" };
"""
BOB = operator("bob")
