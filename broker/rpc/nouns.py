"""The nouns of the core as the services of the API."""

from __future__ import annotations

from collections.abc import Callable

from broker.core.policy.guard import Guard
from broker.core.ports import HsmStatus
from broker.nouns import Nouns
from broker.rpc.approvals import ApprovalMethods
from broker.rpc.audit import AuditMethods
from broker.rpc.authorities import AuthorityMethods
from broker.rpc.drift import DriftMethods
from broker.rpc.hsm import HsmMethods
from broker.rpc.imports import ImportMethods
from broker.rpc.keys import KeyMethods
from broker.rpc.leases import LeaseMethods
from broker.rpc.operations import OperationMethods
from broker.rpc.operators import OperatorMethods
from broker.rpc.pages import PageTokens
from broker.rpc.policies import PolicyMethods
from broker.rpc.secrets import SecretMethods
from broker.rpc.sessions import SessionMethods
from broker.rpc.targets import TargetMethods
from broker.rpc.trust import TrustMethods


def answers(
    nouns: Nouns,
    *,
    hsm: HsmStatus,
    guard: Guard,
    schema: str,
    pages: PageTokens,
    trouble: Callable[[], tuple[str, str]],
) -> dict[str, object]:
    """What ``Server`` takes. ``schema``: the Cedar schema as text; ``trouble``: of the clocks, and of the token."""
    return {
        "KeyService": KeyMethods(
            nouns.keys,
            nouns.use,
            nouns.settling,
            nouns.rotations,
            nouns.schedules,
            nouns.inventory,
            nouns.oversight,
            pages,
        ),
        "TargetService": TargetMethods(nouns.targets, pages),
        "ImportService": ImportMethods(nouns.imports, nouns.handover, pages),
        "DriftService": DriftMethods(nouns.drifts, pages),
        "OperationService": OperationMethods(nouns.oversight, pages),
        "OperatorService": OperatorMethods(nouns.operators, pages, trouble),
        "PolicyService": PolicyMethods(nouns.policies, schema),
        "AuditService": AuditMethods(nouns.heads, pages),
        "AuthorityService": AuthorityMethods(nouns.authorities, nouns.oversight),
        "HsmService": HsmMethods(hsm, guard),
        "SecretService": SecretMethods(nouns.secrets, pages),
        "SessionService": SessionMethods(nouns.sessions, pages),
        "LeaseService": LeaseMethods(nouns.leases, pages),
        "TrustService": TrustMethods(nouns.rules, pages),
        "ApprovalService": ApprovalMethods(nouns.approvals, pages),
    }
