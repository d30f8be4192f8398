"""Trust rules: which verified claims become which pipeline, and how much a rule can be trusted itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from broker.core import ports
from broker.core.call import Call
from broker.core.guard import Guard
from broker.core.model import Proof, TrustRule
from broker.core.page import Page
from broker.core.ports import ClaimFinding, Verified

Verify = Callable[[TrustRule, str], Verified]
"""Verify a token for a rule's issuer without using it up, step by step (``auth.oidc``)."""


def grade(rule: TrustRule) -> tuple[str, tuple[str, ...]]:
    """("A" to "F", reasons)."""
    raise NotImplementedError


def match(rule: TrustRule, claims: Mapping[str, Any]) -> list[ClaimFinding]:
    """One finding for each matcher; the rule matches when all have passed."""
    raise NotImplementedError


def choose(rules: list[TrustRule], named: str, verified: Verified) -> Proof:
    """The one rule that matches, of an issuer's rules (or the one ``named``).

    Unauthenticated ``TRUST_NO_RULE`` / ``TRUST_CLAIM_MISMATCH`` / ``TRUST_AMBIGUOUS``: the caller is told the reason
    only; ``error.facts`` tells the audit which claim failed, with both values.
    """
    raise NotImplementedError


class TrustRules:
    """The noun behind TrustService."""

    def __init__(self, store: ports.Store, guard: Guard, verify: Verify, now: ports.Now) -> None:
        raise NotImplementedError

    def create(self, call: Call, rule: TrustRule) -> TrustRule:
        """Grade and save; InvalidRequest ``TRUST_RULE_WEAK`` names every reason of an F."""
        raise NotImplementedError

    def update(self, call: Call, rule: TrustRule) -> TrustRule:
        raise NotImplementedError

    def get(self, call: Call, name: str) -> TrustRule:
        raise NotImplementedError

    def page(self, call: Call, after: tuple[str | int, ...], limit: int) -> Page[TrustRule]:
        raise NotImplementedError

    def delete(self, call: Call, name: str) -> None:
        raise NotImplementedError

    def test(self, call: Call, name: str, token: str) -> list[ClaimFinding]:
        raise NotImplementedError
