"""A whole broker's methods behind the real gate, called by a function: who calls is believed, all else is as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from broker.core.gate.asking import ApprovalLimits, Asking
from broker.core.gate.flood import Flood
from broker.core.gate.gate import Gate
from broker.core.gate.method import End
from broker.core.identity import Credentials
from broker.core.kinds import OperatorState
from broker.core.model import Operator, Principal
from broker.core.policy.cedar import FIRST_POLICY
from broker.core.policy.guard import Guard
from broker.core.traits import Traits
from broker.rpc import table
from broker.rpc.nouns import answers
from broker.rpc.pages import PageTokens
from tests.fakes.calls import document
from tests.fakes.calls import operator as caller
from tests.worlds.world import NOT_THERE, World

OPERATORS = {
    "alice": ("admins",),
    "bob": ("admins",),
    "carol": ("approvers",),
    "dave": ("key-operators", "key-exporters", "secret-operators"),
}


@dataclass
class Believed:
    """Takes everybody at their word."""

    store: Any

    def authenticate(self, credentials: Credentials) -> Principal:
        name = credentials.metadata["who"]
        row = self.store.get(Operator, name)
        return caller(name, *row.groups)


@dataclass
class Passing:
    """One call."""

    who: str
    text: bytes
    peer: str = "here"

    def credentials(self, rpc: str, traits: Traits) -> Credentials:
        return Credentials(
            certificate=None,
            chain_verified=False,
            metadata={"who": self.who},
            peer=self.peer,
            rpc=rpc,
            traits=traits,
        )

    def known(self, principal: Principal) -> None:
        assert principal.name == self.who

    def message(self) -> bytes:
        return self.text


class Doorway(World):
    """``needed``: what the configuration asks approvals for. Its operators are ``OPERATORS``."""

    def __init__(
        self,
        needed: dict[str, int],
        *,
        policy: str = FIRST_POLICY,
        limits: ApprovalLimits | None = None,
        operators: dict[str, tuple[str, ...]] | None = None,
        **parts: Any,
    ) -> None:
        super().__init__(guard=Guard(document(policy), needed), **parts)
        self.limits = limits or ApprovalLimits()
        with self.store.write(self.own().outcome()) as write:
            write.add(*(self.row(name, groups) for name, groups in (operators or OPERATORS).items()))
            write.add(self.guard.document)
        self.secrets.roots.ensure(self.own("root/1"))
        self.store.entries.clear()
        self.open()

    def row(self, name: str, groups: tuple[str, ...]) -> Operator:
        now = self.clock()
        return Operator(name=name, groups=groups, state=OperatorState.ENABLED, not_before=now, created_at=now)

    def restart(self, **parts: Any) -> None:
        """Another process on the same."""
        super().restart(**parts)
        self.open()

    def open(self) -> None:
        pages = PageTokens(bytes(32))
        services = answers(self, hsm=NOT_THERE, guard=self.guard, schema="", pages=pages, trouble=lambda: ("", ""))
        self.methods = {one.rpc.rpartition("/")[2]: one for one in table.methods(services).values()}
        flood = Flood(1, 9, lambda: 0.0, lambda peer: peer.encode())
        asking = Asking(self.store, self.guard, self.limits)
        self.gate = Gate([Believed(self.store)], self.store, self.clock, flood, asking)

    def end(self, who: str, method: str, **fields: Any) -> End:
        """How the call ends."""
        found = self.methods[method]
        return self.gate.serve(found, Passing(who, found.plan.kind(**fields).SerializeToString()))

    def done(self, who: str, method: str, **fields: Any) -> Any:
        """What is answered; it must not be refused."""
        end = self.end(who, method, **fields)
        assert end.outcome == "ok", (end.reason, end.sentence)
        return self.methods[method].response.FromString(end.answer)

    def refused(self, who: str, method: str, **fields: Any) -> str:
        """The reason that it is refused for."""
        end = self.end(who, method, **fields)
        assert end.reason, end
        return str(end.reason)

    def wanting(self, who: str, method: str, **fields: Any) -> str:
        """The id of the approval that the call is refused for."""
        end = self.end(who, method, **fields)
        assert end.reason == "APPROVAL_REQUIRED", (end.reason, end.sentence)
        return end.metadata["approval"]
