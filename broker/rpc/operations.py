"""OperationService: decode, one call, encode."""

# ruff: noqa: D102 (the contract of each RPC stands in its .proto file)

from __future__ import annotations

from broker_api.v1 import operations_pb2 as wire

from broker.core.call import Call
from broker.core.operations.oversight import Oversight, Shown
from broker.rpc import codec
from broker.rpc.pages import PageTokens, page_size


class OperationMethods:
    """The RPCs of OperationService."""

    def __init__(self, oversight: Oversight, pages: PageTokens) -> None:
        self._oversight = oversight
        self._pages = pages

    def list_operations(self, call: Call, request: wire.ListOperationsRequest) -> wire.ListOperationsResponse:
        query = (request.subject, str(request.live))
        after = self._pages.open(call, query, request.page_token)
        size = page_size(request.page_size)
        page = self._oversight.page(call, request.subject, after, size, live=request.live)
        return wire.ListOperationsResponse(
            operations=[to_wire(one) for one in page.items],
            next_page_token=self._pages.token(call, query, page.next),
        )

    def get_operation(self, call: Call, request: wire.GetOperationRequest) -> wire.GetOperationResponse:
        return wire.GetOperationResponse(operation=to_wire(self._oversight.get(call, request.name)))

    def wait_operation(self, call: Call, request: wire.WaitOperationRequest) -> wire.WaitOperationResponse:
        found = self._oversight.wait(call, request.name, codec.duration(request, "timeout"))
        return wire.WaitOperationResponse(operation=to_wire(found))

    def retry_operation(self, call: Call, request: wire.RetryOperationRequest) -> wire.RetryOperationResponse:
        return wire.RetryOperationResponse(operation=to_wire(self._oversight.retry(call, request.name)))

    def abort_operation(self, call: Call, request: wire.AbortOperationRequest) -> wire.AbortOperationResponse:
        return wire.AbortOperationResponse(operation=to_wire(self._oversight.abort(call, request.name)))


def to_wire(shown: Shown) -> wire.Operation:
    """An operation for the wire."""
    row = shown.operation
    return wire.Operation(
        name=shown.name,
        kind=row.kind,
        state=codec.OPERATION_STATE.wire(row.state),
        done=row.state.over,
        steps=[step.name for step in shown.plan.steps] if shown.plan else (),
        steps_done=row.step,
        place=shown.place,
        principal=row.principal,
        failure=row.failure,
        attempts=row.attempts,
        create_time=codec.timestamp(row.created_at),
        due_time=codec.timestamp(row.due_at),
        abortable=shown.abortable,
    )
