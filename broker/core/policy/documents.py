"""Policies: the Cedar document in force, its history, and why something is denied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from types import MappingProxyType

from broker.core import ports
from broker.core.amiss import no_operator
from broker.core.approvable import WIDENING_POLICY
from broker.core.approval import Approval
from broker.core.call import Call
from broker.core.errors import AlreadyExists, InvalidRequest, NotFound, WrongState
from broker.core.kinds import OperatorState
from broker.core.model import Key, Operator, PolicyDocument, Principal, Receipt, Secret, Target, TrustRule
from broker.core.names import check_approval_id, check_name, check_path
from broker.core.once import once
from broker.core.policy import approvers
from broker.core.policy.cedar import ACTIONS, Decision, is_for
from broker.core.policy.guard import (
    BROKER,
    Guard,
    Resource,
    asked_for,
    of_approval,
    of_key,
    of_operator,
    of_pipeline,
    of_secret,
    of_target,
    of_trust_rule,
    of_unknown_key,
    of_unknown_target,
    permits_more,
    under,
)
from broker.core.reasons import Reason

NOTHING: Mapping[str, str] = MappingProxyType({})

IMPORTING = frozenset({"ImportKey", "ProveImport", "ExportKey", "ConfirmImport"})
"""The actions that are decided with a remote name."""

LATE = 1.5
"""Seconds without a look for a newer document; the background loop looks every second, unless it is held up."""

_OUTDATED = "Another policy text has come into force meanwhile; read it again and make the change in that one."


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What would be decided, and by which policies."""

    allowed: bool
    policies: tuple[str, ...]
    policy_version: int
    sentence: str
    approvals: int = 0


class Policies:
    """The noun behind PolicyService; the background loop calls ``refresh``. ``ticks``: seconds, never set back."""

    def __init__(
        self, store: ports.Store, guard: Guard, now: ports.Now, ticks: Callable[[], float] = lambda: 0.0
    ) -> None:
        self._store = store
        self._guard = guard
        self._now = now
        self._ticks = ticks
        self._looked = ticks()

    def get(self, call: Call, version: int) -> PolicyDocument:
        """A document of the history; 0 is the one in force. NotFound ``POLICY_NOT_FOUND``."""
        self._guard.check(call, BROKER)
        if version == 0:
            return self._guard.document
        document = self._store.get(PolicyDocument, version) if 0 < version <= self._guard.document.version else None
        return _found(document, version)

    def set(self, call: Call, text: str, expected_version: int) -> PolicyDocument:
        """Put ``text`` in force as version ``expected_version + 1``; with ``validate_only`` only say how it would be.

        InvalidRequest ``POLICY_INVALID`` with the lines at fault; WrongState ``CHANGED_MEANWHILE`` when another
        version is in force; WrongState ``POLICY_LOCKS_YOU_OUT`` for a text under which the caller could not set the
        policy again.
        """
        self.refresh()  # what another process has set a moment ago decides too
        self._guard.check(call, BROKER)
        document = PolicyDocument(
            version=expected_version + 1, text=text, author=str(call.principal), created_at=self._now()
        )
        _refuse_lockout(call.principal, document)
        self._refuse_unapproved(call.principal, document)
        if permits_more(document, self._replaced(expected_version)):
            self._guard.case(call, WIDENING_POLICY)
        if call.validate_only:
            call.note(validate_only=1)
            _refuse_outdated(self._store, expected_version)
            return document
        document = self._put(call, document, expected_version)
        self._guard.load(document)
        return document

    def _replaced(self, version: int) -> PolicyDocument:
        """What the new one is to stand in for; that it still is the newest one is looked at where that is written."""
        if version < 1 or version >= 2**31 - 1:
            raise InvalidRequest(Reason.VERSION_INVALID, "Say which version of the policy the text was made from.")
        found = self._store.get(PolicyDocument, version)
        if found is None:
            raise WrongState(Reason.CHANGED_MEANWHILE, _OUTDATED)
        return found

    def _refuse_unapproved(self, principal: Principal, document: PolicyDocument) -> None:
        """WrongState ``APPROVERS_MISSING`` for a text that could never be changed again, for want of approvers."""
        guard = Guard(document)  # what the configuration asks for is not the policy's, and is taken back there
        needed = guard.needed(principal, "SetPolicy", BROKER)
        asked = asked_for("SetPolicy", str(principal), str(BROKER))
        if (there := approvers.count(self._store, guard, asked, needed)) < needed:
            raise approvers.missing("Under this text you could not set the policy again", needed, there)

    def _put(self, call: Call, document: PolicyDocument, expected_version: int) -> PolicyDocument:
        def add(write: ports.Write) -> PolicyDocument:
            _refuse_outdated(write, expected_version)
            write.add(document)
            write.note(policy_version=document.version)
            return document

        def again(write: ports.Write, earlier: Receipt) -> PolicyDocument:
            return _found(write.get(PolicyDocument, earlier.version), earlier.version)

        try:
            return once(self._store, call, "policy", add, again, version=document.version)
        except AlreadyExists as error:
            if error.reason == Reason.NAME_TAKEN:
                raise WrongState(Reason.CHANGED_MEANWHILE, _OUTDATED) from error
            raise

    def explain(
        self, call: Call, who: str, action: str, kind: str, name: str, asking: Mapping[str, str] = NOTHING
    ) -> Explanation:
        """What a principal may do, and why; ``who``: an operator's name, "operator/alice" or "pipeline/deploy".

        ``kind``: "Key", "Target", "Operator", "Secret", "TrustRule", "Approval" or "Broker" (then no name).
        InvalidRequest ``ACTION_UNKNOWN``, ``RESOURCE_KIND_WRONG`` or ``ATTRIBUTE_UNKNOWN`` when there is no such
        question to ask. ``asking``: attributes of a target, or the ``remote_name`` of an import, as the call would have
        them.
        """
        principal, removed = self._asked_about(call, who)
        if action not in ACTIONS:
            raise InvalidRequest(
                Reason.ACTION_UNKNOWN,
                "There is no such action; use a method's name such as Sign; `broker policy show --schema` has all.",
            )
        if principal is None:
            raise no_operator(who.removeprefix("operator/"))
        resource = _asking(self._resource(action, kind, name), action, asking)
        if not is_for(principal.kind.capitalize(), action, resource.kind):
            raise InvalidRequest(
                Reason.RESOURCE_KIND_WRONG, f"{action} is not what the {principal.kind} can do to a {kind.lower()}."
            )
        version = self._guard.document.version
        decision = self._guard.decide(principal, action, resource)
        if removed:
            return Explanation(allowed=False, policies=(), policy_version=version, sentence=_REMOVED)
        needed = self._guard.needed(principal, action, resource) if decision.allowed else 0
        return Explanation(
            allowed=decision.allowed,
            policies=decision.policies,
            policy_version=version,
            sentence=_sentence(decision, needed),
            approvals=needed,
        )

    def _asked_about(self, call: Call, who: str) -> tuple[Principal | None, bool]:
        """The principal as it would call, if there is one, and whether it is an operator who was removed."""
        kind, slash, name = who.partition("/")
        if kind == "pipeline" and slash:
            self._guard.check(call, of_pipeline(check_name(name, "pipeline")))
            return Principal(kind="pipeline", name=name), False
        name = check_name(name if kind == "operator" and slash else who, "operator")
        record = self._store.get(Operator, name)
        self._guard.check(call, of_operator(name, record))
        if record is None:
            return None, False
        return Principal(kind="operator", name=name, groups=record.groups), record.state is OperatorState.REMOVED

    def _resource(self, action: str, kind: str, name: str) -> Resource:
        if kind == "Broker":
            return BROKER
        if kind in {"Secret", "Approval"}:
            return self._otherwise_named(kind, name)
        if kind not in {"Key", "Target", "Operator", "TrustRule"}:
            raise InvalidRequest(
                Reason.RESOURCE_KIND_WRONG,
                "Say what it is about: a key, a target, an operator, a secret, an approval or the broker.",
            )
        check_name(name, "trust rule" if kind == "TrustRule" else kind.lower())
        if kind == "Key":
            key = self._store.get(Key, name)
            return of_key(key) if key else of_unknown_key(name)
        if kind == "Target":
            target = self._store.get(Target, name)
            return of_target(target) if target else of_unknown_target(name)
        if kind == "TrustRule":
            return of_trust_rule(name, self._store.get(TrustRule, name))
        asked = () if action in {"AddOperator", "SetOperatorGroups"} else None
        return of_operator(name, self._store.get(Operator, name), asked=asked)

    def _otherwise_named(self, kind: str, name: str) -> Resource:
        if kind == "Approval":
            return of_approval(check_approval_id(name), self._store.get(Approval, name))
        return of_secret(check_path(name, "secret"), self._store.get(Secret, name))

    def refresh(self) -> None:
        """Put in force what another replica has set since this one looked last.

        A text that this release cannot read, a newer one's, denies everything here until one that it can read is set:
        going on under the text before would keep rights that somebody has taken away.
        """
        begun = self._ticks()
        while newer := self._store.get(PolicyDocument, self._guard.document.version + 1):
            try:
                self._guard.load(newer)
            except InvalidRequest:
                self._guard.load(replace(newer, text=""))
                raise
        self._looked = begun

    def refresh_when_late(self) -> None:
        """``refresh``, if that has not been done for ``LATE`` seconds: whatever the background is held up by.

        A process that was stopped, or whose HSM hangs, must not go on under a policy that others have replaced.
        """
        if self._ticks() - self._looked > LATE:
            with suppress(InvalidRequest):  # then nothing is permitted here, which is the answer
                self.refresh()


def _asking(resource: Resource, action: str, asking: Mapping[str, str]) -> Resource:
    """The resource, as a call would have it that asks for this."""
    known = resource.attributes.keys() - {"name"} if resource.kind == "Target" else set()
    importing = action in IMPORTING and resource.kind in {"Key", "Target"}
    if unknown := asking.keys() - known - ({"remote_name"} if importing else set()):
        raise InvalidRequest(
            Reason.ATTRIBUTE_UNKNOWN,
            f"{action} on a {resource.kind.lower()} is not decided by {len(unknown)} of the values given; "
            "`broker policy show --schema` has what it is decided by.",
        )
    if importing:
        same = resource.id if resource.kind == "Key" else ""
        resource = under(asking.get("remote_name", same), resource)
    given = {name: value for name, value in asking.items() if name in known}
    return replace(resource, attributes={**resource.attributes, **given})


_REMOVED = "Denied: the operator has been removed."


def _sentence(decision: Decision, needed: int) -> str:
    names = ", ".join(decision.policies)
    if decision.error:
        return f"Denied: evaluation fails in {names}, and whatever fails is denied."
    if decision.allowed:
        return f"Allowed by {names}{f', once {needed} other operator(s) have approved it' if needed else ''}."
    return f"Denied: {names} forbids it." if names else "Denied: no policy permits it."


def _refuse_lockout(principal: Principal, document: PolicyDocument) -> None:
    if not Guard(document).permits(principal, "SetPolicy", BROKER):
        raise WrongState(
            Reason.POLICY_LOCKS_YOU_OUT,
            "Under this text you could not set the policy again; keep a policy that permits SetPolicy to you.",
        )


def _refuse_outdated(store: ports.Store | ports.Write, expected_version: int) -> None:
    if store.get(PolicyDocument, expected_version + 1):
        raise WrongState(Reason.CHANGED_MEANWHILE, _OUTDATED)


def _found(document: PolicyDocument | None, version: int) -> PolicyDocument:
    if document is None:
        raise NotFound(
            Reason.POLICY_NOT_FOUND,
            f"There is no version {version} of the policy; `broker policy show` shows the newest.",
        )
    return document
