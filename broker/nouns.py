"""The nouns of the core, made of the parts that they stand on: which noun takes what is said here alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from broker.core import ports
from broker.core.approvals.lifecycle import Approvals
from broker.core.audit.heads import Heads
from broker.core.authorities.known import Founding, OwnKeys, ref
from broker.core.authorities.lifecycle import Authorities
from broker.core.authorities.plans import Footing
from broker.core.drift.lifecycle import Drifts
from broker.core.imports.handover import Handover
from broker.core.imports.importing import Imports
from broker.core.inventory.lifecycle import Inventory
from broker.core.keys.confirming import Settling
from broker.core.keys.lifecycle import DestructionDelay, Keys
from broker.core.keys.use import KeyUse
from broker.core.kinds import Own, Purpose
from broker.core.leases.lifecycle import Leases
from broker.core.operations.oversight import Oversight
from broker.core.operations.running import Operations
from broker.core.operators.register import Operators
from broker.core.policy.documents import Policies
from broker.core.policy.guard import Guard
from broker.core.quota import LeaseQuota
from broker.core.rotations.lifecycle import Rotations
from broker.core.schedules.blackouts import Zone
from broker.core.schedules.lifecycle import Schedules
from broker.core.secrets.lifecycle import Secrets
from broker.core.secrets.root_rows import known_roots
from broker.core.secrets.sealing import Sealing
from broker.core.sessions.lifecycle import Sessions
from broker.core.targets.register import Targets
from broker.core.targets.slots import Slots
from broker.core.trust.rules import TrustRules, Verify


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the nouns stand on: edges by their ports, clocks, and what the configuration says."""

    store: ports.Store
    hsm: ports.Device
    guard: Guard
    now: ports.Now
    ticks: Callable[[], float]  # seconds that nobody can set
    connect: ports.Connect
    verify: Verify
    founding: Founding
    trust_domain: str
    zone: Zone  # the time zones that the host knows
    keep: timedelta  # how long a data key stays unwrapped
    slots: int  # calls that may wait for targets, and keys that one principal may have made, at a time
    lead: timedelta = timedelta(0)  # how long every process takes a new key of the broker's own before it is in force
    publish: Callable[[], None] = lambda: None
    sole: Callable[[], None] = lambda: None  # asked before a copy is deleted at a target, as the HSM does by itself
    delay: DestructionDelay = field(default_factory=DestructionDelay)
    quota: LeaseQuota = field(default_factory=LeaseQuota)
    look_every: timedelta | None = None  # at each place, for drift; None: on demand alone


class Nouns:
    """The nouns on these parts, all of them: so every plan is known before an operation is found."""

    def __init__(self, parts: Parts) -> None:
        store, guard, now, connect = parts.store, parts.guard, parts.now, parts.connect
        callers, roots = parts.hsm.keyring(Purpose.KEY), parts.hsm.keyring(Purpose.ROOT)
        self.slots = slots = Slots(parts.slots)  # of all that wait for targets
        self.operations = Operations(store, now, parts.ticks)
        self.keys = Keys(store, callers, guard, self.operations, now, parts.delay, generating=parts.slots)
        self.use = KeyUse(store, callers, guard, now)
        self.settling = Settling(store, callers, guard, self.operations)
        self.targets = Targets(store, parts.hsm, guard, connect, self.operations, now, slots)
        self.imports = Imports(store, callers, guard, self.operations, connect, now, slots)
        self.handover = Handover(self.imports.bringing)
        self.rotations = Rotations(store, guard, self.operations, self.keys, self.imports, connect, now, parts.sole)
        self.schedules = Schedules(store, guard, self.rotations, parts.zone, now)
        self.inventory = Inventory(store, callers, guard, now)
        self.drifts = Drifts(store, callers, guard, self.operations, connect, now, slots, parts.look_every)
        self.oversight = Oversight(store, guard, self.operations, parts.ticks)
        self.sealing = Sealing(roots, known_roots(store), now, parts.keep, tenant=parts.trust_domain)
        self.secrets = Secrets(store, roots, self.sealing, guard, self.operations, now)
        self.sessions = Sessions(store, self.secrets, guard, now, parts.quota)
        self.leases = Leases(store, guard, now)
        self.rules = TrustRules(store, guard, parts.verify, now)
        self.policies = Policies(store, guard, now, parts.ticks)
        self.approvals = Approvals(store, guard, now)
        self._stand_on_own_keys(parts)

    def _stand_on_own_keys(self, parts: Parts) -> None:
        store, guard, now = parts.store, parts.guard, parts.now
        self.own_keys = own = OwnKeys(store, parts.hsm, parts.founding, now)
        self.operators = Operators(
            store,
            lambda: own.authority(Own.OPERATOR_CA),
            guard,
            now,
            parts.trust_domain,
            lambda: own.certificates(Own.SERVER_CA),
        )
        self.heads = Heads(
            store, parts.hsm.keyring(Purpose.AUDIT), lambda: ref(own.active(Own.AUDIT)), guard, now, own.handovers
        )
        ground = Footing(
            store=store,
            device=parts.hsm,
            own=own,
            now=now,
            trust_domain=parts.trust_domain,
            lead=parts.lead,
            publish=parts.publish,
        )
        self.authorities = Authorities(ground, guard, self.operations)
