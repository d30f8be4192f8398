"""One RPC while it runs: who asks, for what, and what will be written of it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.core.clearance import Clearance
from broker.core.entries import AuditEntry, Phase
from broker.core.model import Principal
from broker.core.ports import Now


@dataclass(slots=True, kw_only=True)
class Call:
    """Made by the gate for each RPC, handed down as the first argument, never shared between threads.

    The guard fills in ``resource`` and the decision; the nouns add facts with ``note``. ``closed`` is True once an
    outcome entry is durable; the gate writes one for every call that ends without.
    """

    id: str
    rpc: str  # "KeyService/CreateKey"
    principal: Principal
    peer: str
    now: Now
    request_id: str = ""
    validate_only: bool = False
    digest: str = ""  # SHA-256 of the serialised request without secret values, hex
    resource: str = ""
    decision: str = ""
    policies: tuple[str, ...] = ()
    policy_version: int = 0
    closed: bool = False
    fence: int = 0  # the leader's number in the shared work of the background; 0 in all that a process does for itself
    facts: dict[str, str | int] = field(default_factory=dict)
    clearance: Clearance | None = None  # None: what goes on behind the door needs no approval of its own

    @property
    def action(self) -> str:
        """The name of the RPC is the name of the Cedar action: nothing can be checked under another's name (AZ-05)."""
        return self.rpc.rpartition("/")[2]

    def note(self, **facts: str | int) -> None:
        """Remember facts (names from ``audit.FACTS``) for every entry made from here on."""
        self.facts.update(facts)

    def intent(self) -> AuditEntry:
        """The entry to make durable before the outside world is touched."""
        return self._entry(Phase.INTENT, "", "", self.resource, self._noted())

    def outcome(self, status: str = "ok", reason: str = "") -> AuditEntry:
        """The entry that closes the call; the code that makes it durable sets ``closed``."""
        return self._entry(Phase.OUTCOME, status, reason, self.resource, self._noted())

    def outcome_of(self, resource: str, facts: Mapping[str, str | int]) -> AuditEntry:
        """The entry of one of several things that came to their end by this call, with facts of its own only."""
        return self._entry(Phase.OUTCOME, "ok", "", resource, facts)

    def _noted(self) -> dict[str, str | int]:
        return {**self.facts, "fence": self.fence} if self.fence else dict(self.facts)

    def _entry(
        self, phase: Phase, status: str, reason: str, resource: str, facts: Mapping[str, str | int]
    ) -> AuditEntry:
        return AuditEntry(
            time=self.now(),
            phase=phase,
            call_id=self.id,
            rpc=self.rpc,
            request_id=self.request_id,
            principal=str(self.principal) if self.principal.name else "",
            authn=self.principal.method,
            credential=self.principal.credential,
            peer=self.peer,
            resource=resource,
            decision=self.decision,
            policies=self.policies,
            policy_version=self.policy_version,
            outcome=status,
            reason=reason,
            facts=facts,
        )


BACKGROUND = Principal(kind="broker", name="background")
"""Who does what nobody has called for."""


def on_behalf(call: Call, rpc: str, principal: Principal) -> Call:
    """A call that is part of ``call``, or that the background makes for somebody who asked for it earlier.

    Whether they may is decided for it alone; the approvals that it needs are then needed by ``call``.
    """
    return Call(
        id=secrets.token_hex(16),
        rpc=rpc,
        principal=principal,
        peer="",
        now=call.now,
        fence=call.fence,
        clearance=call.clearance,
    )


def background_call(resource: str, fence: int, now: Now, rpc: str = "-/Chore") -> Call:
    """The broker's own work, as the audit sees it; ``fence`` is the leader's number where it is shared work, else 0."""
    return Call(
        id=secrets.token_hex(16), rpc=rpc, principal=BACKGROUND, peer="", now=now, resource=resource, fence=fence
    )
