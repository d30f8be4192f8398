"""What the stand-in of ``test_standin`` answers about rotations, drift, operations and approvals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import broker_api.v1.approvals_pb2 as approvals
import broker_api.v1.drift_pb2 as drift
import broker_api.v1.keys_pb2 as keys
import broker_api.v1.operations_pb2 as operations
from google.protobuf.timestamp_pb2 import Timestamp

Answer = Callable[[Any], Any]
WHEN = Timestamp(seconds=1_780_000_000)
PLACE = keys.KeyPlace(version=2, target="prod", remote_name="pay")
MOVE = keys.KeyMove(version=1, phase=keys.KEY_VERSION_PHASE_ACTIVE, time=WHEN, actor="operator/alice", reason="created")
ROTATION = operations.Operation(
    name="key/pay/rotation/1",
    kind="rotate-key",
    state=operations.OPERATION_STATE_DONE,
    done=True,
    steps=["generate", "arrive", "activate"],
    steps_done=5,
)


def operation_answers() -> dict[str, Answer]:
    one = operations.Operation(
        name="key/pay/3/1",
        kind="make-key-version",
        state=operations.OPERATION_STATE_RUNNING,
        steps=["generate"],
        place="the HSM",
        create_time=WHEN,
    )
    return {
        "ListOperations": lambda _: operations.ListOperationsResponse(operations=[one]),
        "GetOperation": lambda r: operations.GetOperationResponse(
            operation=ROTATION if r.name == ROTATION.name else one
        ),
        "WaitOperation": lambda _: operations.WaitOperationResponse(operation=one),
        "RetryOperation": lambda _: operations.RetryOperationResponse(operation=one),
        "AbortOperation": lambda _: operations.AbortOperationResponse(operation=one),
    }


def approval_answers() -> dict[str, Answer]:
    one = approvals.Approval(
        id="0123456789ab",
        state=approvals.APPROVAL_STATE_WAITING,
        says="operator/bob asks to seal a key: key/pay.",
        details={"name": "pay", "text": "one\ntwo\x1b[2J"},
        digest="00",
        needed=2,
        grants=[approvals.Approval.Grant(operator="operator/carol", time=WHEN)],
        expire_time=WHEN,
    )
    return {
        "ListApprovals": lambda _: approvals.ListApprovalsResponse(approvals=[one]),
        "GetApproval": lambda _: approvals.GetApprovalResponse(approval=one),
        "Approve": lambda _: approvals.ApproveResponse(approval=one),
        "Reject": lambda _: approvals.RejectResponse(approval=one),
    }


def rotation_answers(key: Callable[[Any], Any]) -> dict[str, Answer]:
    """``key``: the key that a request names."""
    return {
        "RotateKey": lambda r: keys.RotateKeyResponse(key=key(r), operation=ROTATION if r.everywhere else None),
        "CompromiseKeyVersion": lambda r: keys.CompromiseKeyVersionResponse(
            key=key(r), version=2, operation=ROTATION, places=[PLACE]
        ),
        "CheckDrift": lambda r: drift.CheckDriftResponse(report=drift.DriftReport(target=r.target)),
        "ListDrift": lambda _: drift.ListDriftResponse(),
        "ListKeyMoves": lambda _: keys.ListKeyMovesResponse(moves=[MOVE]),
    }
