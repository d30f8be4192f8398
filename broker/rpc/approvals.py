"""ApprovalService: decode, one call, encode."""

# ruff: noqa: D102 (the contract of each RPC stands in its .proto file)

from __future__ import annotations

from broker_api.v1 import approvals_pb2 as wire

from broker.core.approval import Approval
from broker.core.approvals.lifecycle import Approvals, in_words
from broker.core.call import Call
from broker.core.kinds import ApprovalState
from broker.rpc import codec
from broker.rpc.pages import PageTokens, page_size

DIGEST = 64

STATES = {
    ApprovalState.USED: wire.APPROVAL_STATE_USED,
    ApprovalState.REJECTED: wire.APPROVAL_STATE_REJECTED,
    ApprovalState.EXPIRED: wire.APPROVAL_STATE_EXPIRED,
}


class ApprovalMethods:
    """The RPCs of ApprovalService."""

    def __init__(self, approvals: Approvals, pages: PageTokens) -> None:
        self._approvals = approvals
        self._pages = pages

    def list_approvals(self, call: Call, request: wire.ListApprovalsRequest) -> wire.ListApprovalsResponse:
        query = (str(request.waiting),)
        after = self._pages.open(call, query, request.page_token)
        page = self._approvals.page(call, after, page_size(request.page_size), waiting=request.waiting)
        return wire.ListApprovalsResponse(
            approvals=[_shown(one, listed=True) for one in page.items],
            next_page_token=self._pages.token(call, query, page.next),
        )

    def get_approval(self, call: Call, request: wire.GetApprovalRequest) -> wire.GetApprovalResponse:
        return wire.GetApprovalResponse(approval=_shown(self._approvals.get(call, request.id)))

    def approve(self, call: Call, request: wire.ApproveRequest) -> wire.ApproveResponse:
        codec.at_most(len(request.digest), DIGEST, "digest")
        done = self._approvals.approve(call, request.id, request.digest, request.reason)
        return wire.ApproveResponse(approval=_shown(done))

    def reject(self, call: Call, request: wire.RejectRequest) -> wire.RejectResponse:
        return wire.RejectResponse(approval=_shown(self._approvals.reject(call, request.id, request.reason)))


def _shown(row: Approval, *, listed: bool = False) -> wire.Approval:
    """An approval for the wire; ``listed``: without the request, of which a page could hold too many."""
    return wire.Approval(
        id=row.id,
        state=_state(row),
        says=in_words(row),
        action=row.rpc.rpartition("/")[2],
        resource=row.resource,
        requester=row.requester,
        details={} if listed else dict(row.details),
        digest=row.digest,
        needed=row.needed,
        grants=[
            wire.Approval.Grant(operator=one.by, time=codec.timestamp(one.at), reason=one.reason) for one in row.grants
        ],
        create_time=codec.timestamp(row.created_at),
        expire_time=codec.timestamp(row.expires_at),
        rejected_by=row.ended_by,
        reason=row.why,
    )


def _state(row: Approval) -> wire.ApprovalState.ValueType:
    enough = wire.APPROVAL_STATE_APPROVED if len(row.grants) >= row.needed else wire.APPROVAL_STATE_WAITING
    return STATES.get(row.state, enough)
