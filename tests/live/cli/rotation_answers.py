"""What the stand-in of ``test_standin`` answers about rotations, drift and operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
    steps=["generate", "arrive", "activate", "retire", "withdraw"],
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
