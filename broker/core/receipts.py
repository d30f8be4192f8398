"""Idempotency of mutations under the caller's request id (AIP-155)."""

from __future__ import annotations

from broker.core.call import Call
from broker.core.errors import AlreadyExists, WrongState
from broker.core.model import Operation, Receipt
from broker.core.ports import Store, Write
from broker.core.reasons import Reason


def replay(write: Write, call: Call) -> Receipt | None:
    """The receipt of the same request, if this principal sent it before under the same id; None otherwise.

    Then it is about to be done, so an approval that it needs is used up in the same transaction (``ApprovalRequired``).
    AlreadyExists ``REQUEST_ID_REUSED`` when the id was used for a different request.
    """
    receipt = write.get(Receipt, str(call.principal), call.request_id) if call.request_id else None
    if receipt is None:
        if call.clearance is not None:
            call.clearance.spend(write)
        return None
    if receipt.digest != call.digest:
        raise reused()
    write.note(replayed=1)
    if call.clearance is not None:
        call.clearance.repeated = True
    return receipt


def seen(store: Store, call: Call) -> Receipt | None:
    """The receipt of the same request, looked for before any write: then what it made is told, or carried on."""
    receipt = store.get(Receipt, str(call.principal), call.request_id) if call.request_id else None
    if receipt is None or receipt.digest != call.digest:
        return None
    if call.clearance is not None:
        call.clearance.repeated = True
    return receipt


def reused() -> AlreadyExists:
    """The refusal of a request id that another request had."""
    return AlreadyExists(
        Reason.REQUEST_ID_REUSED,
        "The request id was already used for a different request; send a fresh UUID with each one.",
    )


def undone() -> WrongState:
    """The refusal of a repeated request of whose first try nothing is left."""
    return WrongState(
        Reason.EARLIER_TRY_UNDONE, "The first try of this request was undone; send it anew, under a fresh request id."
    )


def keep(
    write: Write,
    call: Call,
    resource: str,
    version: int = 0,
    values_mac: bytes | None = None,
    operation: Operation | None = None,
) -> None:
    """Remember, in the same transaction as the change, what this request id did, and the operation that it began."""
    if call.request_id:
        write.add(
            Receipt(
                principal=str(call.principal),
                request_id=call.request_id,
                rpc=call.rpc,
                digest=call.digest,
                resource=resource,
                version=version,
                created_at=call.now(),
                values_mac=values_mac,
                operation=operation.number if operation else None,
            )
        )
