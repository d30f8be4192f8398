"""The one authoriser: every noun asks here before it looks anything up for the caller or touches anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from threading import Lock
from types import MappingProxyType

from broker.core.approvable import APPROVABLE, CASES
from broker.core.approval import Approval
from broker.core.call import Call
from broker.core.errors import PermissionDenied
from broker.core.model import Key, Operator, PolicyDocument, Principal, Secret, Target, TrustRule
from broker.core.policy.cedar import Decision, Entity, Policy, Question, widens
from broker.core.reasons import Reason

CACHED_DECISIONS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """What is being acted on, as the policies see it. ``id`` is always a checked name.

    ``groups`` are those the thing is in; ``context`` is what the caller asks for, where the schema knows of it.
    """

    kind: str  # the Cedar entity type: "Key", "Target", "Operator", "Broker"
    id: str
    attributes: Mapping[str, str | bool] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    context: Mapping[str, tuple[str, ...] | str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.kind.lower()}/{self.id}"


BROKER = Resource(kind="Broker", id="broker")
"""The resource of actions on the broker itself: lists, the policy, the audit heads, the HSM."""

ABSENT = "absent"
"""The state of a key, or the kind of a target, that does not exist."""


def of_key(key: Key) -> Resource:
    """A key as the policies see it."""
    attributes: dict[str, str | bool] = {
        "type": key.type.value,
        "usage": key.usage.value,
        "owner": key.owner,
        "exportable": key.exportable,
        "state": key.state.value,
    }
    return Resource(kind="Key", id=key.name, attributes=attributes, tags=key.labels)


def of_unknown_key(name: str) -> Resource:
    """A key that does not exist, so that the permission is decided before its absence is told."""
    attributes: dict[str, str | bool] = {"type": "", "usage": "", "owner": "", "exportable": False, "state": ABSENT}
    return Resource(kind="Key", id=name, attributes=attributes)


PLACE: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "address": ("address", "vault_url"),
    "mount": ("mount",),
    "namespace": ("namespace",),
    "credential": ("token_file", "file", "credential"),
    "client_id": ("client_id",),
    "kek": ("kek",),
})  # fmt: skip
"""What policies know of a target: each attribute is the first of these settings that the target has."""


def of_target(target: Target) -> Resource:
    """A target as the policies see it, registered or about to be."""
    place = {name: _first(target.settings, among) for name, among in PLACE.items()}
    return Resource(kind="Target", id=target.name, attributes={"name": target.name, "kind": target.kind, **place})


def of_unknown_target(name: str) -> Resource:
    """A target that does not exist."""
    return Resource(kind="Target", id=name, attributes={"name": name, "kind": ABSENT, **dict.fromkeys(PLACE, "")})


def _first(settings: Mapping[str, str], among: tuple[str, ...]) -> str:
    return next((settings[each] for each in among if settings.get(each)), "")


def under(remote_name: str, resource: Resource) -> Resource:
    """A key or a target, where it is about the key's name at the target."""
    return replace(resource, context={"remote_name": remote_name})


def of_operator(name: str, operator: Operator | None, *, asked: tuple[str, ...] | None = None) -> Resource:
    """An operator as the policies see it, existing or not; ``asked``: the groups the operator is to have."""
    return Resource(
        kind="Operator",
        id=name,
        attributes={"identity": f"operator/{name}"},
        groups=operator.groups if operator else (),
        context={} if asked is None else {"groups": asked},
    )


def of_pipeline(name: str) -> Resource:
    """A pipeline as the policies see it, whether or not a trust rule gives it."""
    return Resource(kind="Pipeline", id=name, attributes={"identity": f"pipeline/{name}"})


def of_secret(name: str, secret: Secret | None) -> Resource:
    """A secret as the policies see it, existing or not: in the folders of all its leading segments."""
    return Resource(kind="Secret", id=name, tags=secret.labels if secret else {}, folders=_folders(name))


@lru_cache(1024)
def _folders(name: str) -> tuple[str, ...]:
    segments = name.split("/")
    return tuple("/".join(segments[:depth]) for depth in range(1, len(segments)))


def of_trust_rule(name: str, rule: TrustRule | None) -> Resource:
    """A trust rule as the policies see it, existing or not."""
    return Resource(kind="TrustRule", id=name, attributes={"pipeline": rule.pipeline if rule else ""})


def of_approval(name: str, approval: Approval | None) -> Resource:
    """An approval as the policies see it, existing or not."""
    if approval is None:
        return asked_for("", "", "", name)
    return asked_for(approval.rpc.rpartition("/")[2], approval.requester, approval.resource, name)


def asked_for(action: str, requester: str, about: str, name: str = "any") -> Resource:
    """The approval of an action that somebody would ask for."""
    attributes: dict[str, str | bool] = {"action": action, "requester": requester, "about": about}
    return Resource(kind="Approval", id=name, attributes=attributes)


@lru_cache(16)
def _parsed(text: str) -> Policy:
    """One text is checked once, also where it is checked before it is stored and then put in force."""
    return Policy(text)


def permits_more(document: PolicyDocument, than: PolicyDocument) -> bool:
    """Whether a document may permit what the other one does not, or with fewer approvals."""
    return widens(_parsed(than.text), _parsed(document.text))


class _InForce:
    """One document and what was decided by it. A decision is only ever found under everything it was made from."""

    def __init__(self, document: PolicyDocument) -> None:
        self.document = document
        self.policy = _parsed(document.text)
        self.decide_anew = self.policy.decide
        self.decide = lru_cache(CACHED_DECISIONS)(self.decide_anew)


class Guard:
    """Decides by the policy document in force; deny unless a policy permits, deny on any evaluation error.

    ``approvals``: how many the configuration asks for, by action or case (``approvable``).
    """

    def __init__(self, document: PolicyDocument, approvals: Mapping[str, int] = MappingProxyType({})) -> None:
        self.approvals = approvals
        self._in_force = _InForce(document)
        self._loading = Lock()
        self._look: Callable[[], None] = lambda: None

    def watch(self, look: Callable[[], None]) -> None:
        """Call ``look`` before every decision: it puts in force what another process has set, or raises."""
        self._look = look

    @property
    def document(self) -> PolicyDocument:
        """The document in force."""
        return self._in_force.document

    def load(self, document: PolicyDocument) -> None:
        """Put another document in force, at once for every thread.

        InvalidRequest ``POLICY_INVALID`` leaves the old one. A document older than the one in force is left aside:
        two that are set at once may arrive in either order.
        """
        loaded = _InForce(document)
        with self._loading:
            if document.version >= self.document.version:
                self._in_force = loaded

    def check(self, call: Call, resource: Resource) -> None:
        """Return if ``call.principal`` may do ``call.action`` to ``resource``; else PermissionDenied ``POLICY_DENIED``.

        Writes the resource, the decision, the deciding policy ids and the policy version into ``call`` either way.
        Called twice in one call (key, then target), the resource becomes "key/a,target/b" and both must be allowed.
        A policy that cannot be evaluated denies too, as ``POLICY_ERROR``, so that it is noticed in the audit.
        """
        self._look()
        in_force = self._in_force
        decision = in_force.decide(_question(call.principal, call.action, resource))
        _write_down(call, resource, decision, in_force.document.version)
        if decision.error:
            raise PermissionDenied(
                Reason.POLICY_ERROR,
                f"{call.action} is refused because the policy could not be evaluated; the operator who keeps "
                "the policy finds the cause with `broker policy explain`.",
                action=call.action,
                resource_kind=resource.kind,
            )
        if decision.allowed:
            self._ask(call, max(decision.approvals, self.approvals.get(call.action, 0)))
        else:
            raise PermissionDenied(
                Reason.POLICY_DENIED,
                f"The policy does not let you do {call.action} on this {resource.kind.lower()}; `broker policy explain "
                f"{call.principal} {call.action} {_asked_about(resource.kind)}` tells why.",
                action=call.action,
                resource_kind=resource.kind,
            )

    def case(self, call: Call, case: str) -> None:
        """The call is one of the cases that the configuration may ask approvals for (``approvable.CASES``)."""
        self._ask(call, self.approvals.get(case, 0))

    def needed(self, principal: Principal, action: str, resource: Resource, *cases: str) -> int:
        """How many approvals such a call needs, if it is permitted."""
        if action not in APPROVABLE:
            return 0
        asked = self.decide(principal, action, resource).approvals
        return max((asked, *(self.approvals.get(one, 0) for one in (action, *cases))))

    def asks(self) -> Mapping[str, int]:
        """The most approvals that a call of an action may need, by action."""
        asks = dict(self._in_force.policy.asks)
        for name, count in self.approvals.items():
            for action in CASES.get(name, (name,)):
                asks[action] = max(asks.get(action, 0), count)
        return asks

    @staticmethod
    def _ask(call: Call, approvals: int) -> None:
        if call.clearance is not None and call.action in APPROVABLE:
            call.clearance.need(approvals)

    def permits(self, principal: Principal, action: str, resource: Resource) -> bool:
        """The same decision without a record of its own: for filtering lists and for explaining."""
        return self.decide(principal, action, resource).allowed

    def shows(self, principal: Principal, action: str, resource: Resource) -> bool:
        """As ``permits``, for a list of thousands: it drives out nothing that was remembered of what is used."""
        return self._in_force.decide_anew(_question(principal, action, resource)).allowed

    def decide(self, principal: Principal, action: str, resource: Resource) -> Decision:
        """As ``permits``, with the policies that decide."""
        return self._in_force.decide(_question(principal, action, resource))


def _subject(principal: Principal) -> Entity:
    """The caller as the policies see it. A kind that the schema does not know is denied everything (AN-30)."""
    return Entity(
        principal.kind.capitalize(),
        principal.name,
        attributes=(("identity", str(principal)),),
        groups=principal.groups,
    )


def _question(principal: Principal, action: str, resource: Resource) -> Question:
    target = Entity(
        resource.kind,
        resource.id,
        tuple(resource.attributes.items()),
        resource.groups,
        tuple(resource.tags.items()),
        resource.folders,
    )
    return Question(_subject(principal), action, target, tuple(resource.context.items()))


def _asked_about(kind: str) -> str:
    """The resource as `broker policy explain` takes it. A denial repeats no name; and there is only one broker."""
    words = {"Broker": "broker", "TrustRule": "trust/NAME"}
    return words.get(kind, f"{kind.lower()}/NAME")


def _write_down(call: Call, resource: Resource, decision: Decision, version: int) -> None:
    call.resource = f"{call.resource},{resource}" if call.resource else str(resource)
    call.decision = "allow" if decision.allowed and call.decision != "deny" else "deny"
    call.policies = tuple(sorted({*call.policies, *decision.policies}))
    call.policy_version = version
