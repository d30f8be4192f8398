"""Leases: what has been handed out, to whom, until when."""

from __future__ import annotations

from broker.core import ports
from broker.core.call import Call
from broker.core.guard import Guard
from broker.core.model import Lease
from broker.core.page import Page


class Leases:
    """The noun behind LeaseService."""

    def __init__(self, store: ports.Store, guard: Guard, now: ports.Now) -> None:
        raise NotImplementedError

    def page(self, call: Call, principal: str, session: str, after: tuple[str | int, ...], limit: int) -> Page[Lease]:
        raise NotImplementedError

    def revoke(self, call: Call, *, lease: str = "", principal: str = "", prefix: str = "") -> int:
        raise NotImplementedError
