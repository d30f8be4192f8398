"""The nouns of the core as the services of the API."""

from __future__ import annotations

from collections.abc import Callable

from broker.core.approvals.lifecycle import Approvals
from broker.core.audit.heads import Heads
from broker.core.authorities.lifecycle import Authorities
from broker.core.drift.lifecycle import Drifts
from broker.core.imports.handover import Handover
from broker.core.imports.importing import Imports
from broker.core.inventory.lifecycle import Inventory
from broker.core.keys.confirming import Settling
from broker.core.keys.lifecycle import Keys
from broker.core.keys.use import KeyUse
from broker.core.leases.lifecycle import Leases
from broker.core.operations.oversight import Oversight
from broker.core.operators.register import Operators
from broker.core.policy.documents import Policies
from broker.core.policy.guard import Guard
from broker.core.ports import HsmStatus
from broker.core.rotations.lifecycle import Rotations
from broker.core.schedules.lifecycle import Schedules
from broker.core.secrets.lifecycle import Secrets
from broker.core.sessions.lifecycle import Sessions
from broker.core.targets.register import Targets
from broker.core.trust.rules import TrustRules
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


def answers(  # noqa: PLR0913 (one argument a noun)
    *,
    keys: Keys,
    use: KeyUse,
    settling: Settling,
    rotations: Rotations,
    schedules: Schedules,
    inventory: Inventory,
    drifts: Drifts,
    targets: Targets,
    imports: Imports,
    handover: Handover,
    oversight: Oversight,
    operators: Operators,
    policies: Policies,
    heads: Heads,
    authorities: Authorities,
    secrets: Secrets,
    sessions: Sessions,
    leases: Leases,
    rules: TrustRules,
    approvals: Approvals,
    hsm: HsmStatus,
    guard: Guard,
    schema: str,
    pages: PageTokens,
    trouble: Callable[[], str],
) -> dict[str, object]:
    """What ``Server`` takes. ``schema``: the Cedar schema as text; ``trouble``: what is wrong with the clocks."""
    return {
        "KeyService": KeyMethods(keys, use, settling, rotations, schedules, inventory, oversight, pages),
        "TargetService": TargetMethods(targets, pages),
        "ImportService": ImportMethods(imports, handover, pages),
        "DriftService": DriftMethods(drifts, pages),
        "OperationService": OperationMethods(oversight, pages),
        "OperatorService": OperatorMethods(operators, pages, trouble),
        "PolicyService": PolicyMethods(policies, schema),
        "AuditService": AuditMethods(heads, pages),
        "AuthorityService": AuthorityMethods(authorities, oversight),
        "HsmService": HsmMethods(hsm, guard),
        "SecretService": SecretMethods(secrets, pages),
        "SessionService": SessionMethods(sessions, pages),
        "LeaseService": LeaseMethods(leases, pages),
        "TrustService": TrustMethods(rules, pages),
        "ApprovalService": ApprovalMethods(approvals, pages),
    }
