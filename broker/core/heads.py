"""Audit heads: what the HSM's audit key has signed of each chain."""

from __future__ import annotations

from broker.core import ports
from broker.core.call import Call
from broker.core.guard import Guard
from broker.core.model import AuditHead
from broker.core.page import Page
from broker.core.ports import KeyRef


class Heads:
    """The noun behind AuditService; the background loop calls ``sign_due``."""

    def __init__(self, store: ports.Store, hsm: ports.Hsm, key: KeyRef, guard: Guard, now: ports.Now) -> None:
        raise NotImplementedError

    def state(self, call: Call) -> tuple[bytes, list[AuditHead]]:
        """(the audit key's SubjectPublicKeyInfo DER, the newest head of every chain)."""
        raise NotImplementedError

    def sign(self, call: Call) -> list[AuditHead]:
        raise NotImplementedError

    def page(self, call: Call, chain: str, after: tuple[str | int, ...], limit: int) -> Page[AuditHead]:
        raise NotImplementedError

    def sign_due(self) -> None:
        """Sign every chain that moved since its last head."""
        raise NotImplementedError
