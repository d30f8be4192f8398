"""Operators: the people who may call, and their short-lived certificates."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from broker.core import ports
from broker.core.authority import Authority
from broker.core.call import Call
from broker.core.guard import Guard
from broker.core.model import Operator
from broker.core.page import Page


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A signed client certificate."""

    pem: bytes
    ca_pem: bytes
    serial: str  # lower-case hex
    expires_at: datetime


class Operators:
    """The noun behind OperatorService."""

    def __init__(self, store: ports.Store, authority: Authority, guard: Guard, now: ports.Now) -> None:
        raise NotImplementedError

    def add(
        self, call: Call, name: str, groups: list[str], csr_pem: bytes, ttl: timedelta | None
    ) -> tuple[Operator, Issued]:
        raise NotImplementedError

    def renew(self, call: Call, csr_pem: bytes, ttl: timedelta | None) -> Issued:
        raise NotImplementedError

    def issue(self, call: Call, name: str, csr_pem: bytes, ttl: timedelta | None) -> Issued:
        raise NotImplementedError

    def page(self, call: Call, after: tuple[str | int, ...], limit: int) -> Page[Operator]:
        raise NotImplementedError

    def set_groups(self, call: Call, name: str, groups: list[str]) -> Operator:
        raise NotImplementedError

    def revoke(self, call: Call, name: str) -> Operator:
        raise NotImplementedError

    def remove(self, call: Call, name: str) -> Operator:
        raise NotImplementedError

    def whoami(self, call: Call) -> None:
        """Allowed to every established principal; the decision is recorded like any other."""
        raise NotImplementedError
