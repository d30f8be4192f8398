"""PolicyService: decode, one call, encode."""

# ruff: noqa: D102 (the contract of each RPC stands in its .proto file)

from __future__ import annotations

from broker_api.v1 import policies_pb2 as wire

from broker.core.call import Call
from broker.core.model import PolicyDocument
from broker.core.policy.documents import Policies
from broker.rpc import codec

MAX_TEXT = 64 * codec.KIBIBYTE
MAX_ASKING = 16

KINDS = {
    "key": "Key",
    "target": "Target",
    "operator_resource": "Operator",
    "secret": "Secret",
    "trust_rule": "TrustRule",
    "approval": "Approval",
}
"""The choices of ExplainPolicyRequest.resource that carry a name, and the Cedar type each stands for."""


class PolicyMethods:
    """The RPCs of PolicyService. ``schema`` is the Cedar schema as text, for readers."""

    def __init__(self, policies: Policies, schema: str) -> None:
        self._policies = policies
        self._schema = schema

    def get_policy(self, call: Call, request: wire.GetPolicyRequest) -> wire.GetPolicyResponse:
        document = self._policies.get(call, codec.version(request.version))
        return wire.GetPolicyResponse(policy=_document(document), schema=self._schema)

    def set_policy(self, call: Call, request: wire.SetPolicyRequest) -> wire.SetPolicyResponse:
        codec.at_most(len(request.text.encode()), MAX_TEXT, "text")
        document = self._policies.set(call, request.text, codec.version(request.expected_version))
        return wire.SetPolicyResponse(policy=_document(document))

    def explain_policy(self, call: Call, request: wire.ExplainPolicyRequest) -> wire.ExplainPolicyResponse:
        kind, name = _resource(request)
        codec.at_most(len(request.asking), MAX_ASKING, "asking")
        for word in (*request.asking, *request.asking.values()):
            codec.at_most(len(word), codec.KIBIBYTE, "asking")
        found = self._policies.explain(call, request.operator, request.action, kind, name, dict(request.asking))
        return wire.ExplainPolicyResponse(
            allowed=found.allowed,
            policies=found.policies,
            policy_version=found.policy_version,
            explanation=found.sentence,
            approvals=found.approvals,
        )


def _resource(request: wire.ExplainPolicyRequest) -> tuple[str, str]:
    choice = request.WhichOneof("resource")
    if choice in KINDS:
        return KINDS[choice], getattr(request, choice)
    if not request.broker:
        raise codec.missing("resource")
    return "Broker", "broker"


def _document(document: PolicyDocument) -> wire.PolicyDocument:
    return wire.PolicyDocument(
        version=document.version,
        text=document.text,
        author=document.author,
        create_time=codec.timestamp(document.created_at),
    )
