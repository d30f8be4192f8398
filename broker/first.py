"""The first records of a new broker: its policy, root key and operator. What is there is kept."""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta

from broker.core.call import Call
from broker.core.kinds import OperatorState
from broker.core.model import Operator, PolicyDocument, Principal
from broker.core.operators.authority import BACKDATED
from broker.core.policy.cedar import FIRST_POLICY
from broker.core.policy.guard import Guard
from broker.core.ports import Hsm, Now, Store
from broker.core.secrets.roots import Roots, known_roots
from broker.core.secrets.sealing import Sealing


def call(rpc: str, resource: str, now: Now) -> Call:
    """What `init` does, as the audit has it."""
    principal = Principal(kind="broker", name="init")
    return Call(id=secrets.token_hex(16), rpc=rpc, principal=principal, peer="", now=now, resource=resource)


def policy(store: Store, now: Now) -> None:
    """Administrators may do everything, nobody else anything."""
    if store.get(PolicyDocument, 1):
        return
    document = PolicyDocument(version=1, text=FIRST_POLICY, author="broker/init", created_at=now())
    made = call("-/FirstPolicy", "broker/broker", now)
    made.note(policy_version=1)
    with store.write(made.outcome()) as write:
        write.add(document)


def root(store: Store, hsm: Hsm, trust_domain: str, in_force: PolicyDocument, now: Now) -> None:
    """The root key that the data keys of secrets are wrapped with; one that a crash left half made is completed."""
    sealing = Sealing(hsm, known_roots(store), now, timedelta(0), tenant=trust_domain)
    roots = Roots(store, hsm, sealing, Guard(in_force), now)
    roots.ensure(call("-/FirstRootKey", "root/1", now))


def operator(store: Store, name: str, now: Now) -> None:
    """An administrator."""
    if store.get(Operator, name):
        return
    start = now().replace(microsecond=0)
    first = Operator(
        name=name, groups=("admins",), state=OperatorState.ENABLED, not_before=start - BACKDATED, created_at=start
    )
    with store.write(call("-/FirstOperator", f"operator/{name}", now).outcome()) as write:
        write.add(first)


def since(store: Store, name: str, now: Now) -> datetime:
    """Backdated for clocks that are behind, but not to before the operator's certificates were last revoked."""
    start = now().replace(microsecond=0) - BACKDATED
    known = store.get(Operator, name)
    return max(start, known.not_before) if known else start
