"""The one error table."""

from __future__ import annotations

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from broker.core import errors
from broker.core.errors import Outcome
from broker.core.gate import method
from broker.rpc import status


def all_errors(kind: type[errors.BrokerError] = errors.BrokerError) -> list[type[errors.BrokerError]]:
    direct = [each for each in kind.__subclasses__() if each.__module__ == errors.__name__]
    return direct + [deeper for each in direct for deeper in all_errors(each)]


def test_every_error_has_its_own_outcome_and_every_outcome_its_status() -> None:
    outcomes = [kind.outcome for kind in all_errors()]
    assert len(set(outcomes)) == len(outcomes) == 11
    assert set(Outcome) - set(outcomes) == {Outcome.OK, Outcome.INTERNAL, Outcome.ABORTED}
    assert {outcome.value.upper(): code.name for outcome, code in status.CODES.items()} == {
        each.name: each.name for each in Outcome
    }


def test_a_bare_broker_error_is_a_bug() -> None:
    assert errors.BrokerError("X", "x").outcome is Outcome.INTERNAL


def made_of(reason: str, sentence: str, call_id: str, parts: dict[str, str]) -> grpc.Status:
    return status.refusal(method.refusal(call_id, errors.NotFound(reason, sentence, **parts)))


def packed(found: grpc.Status) -> tuple[Status, ErrorInfo]:
    [(key, value)] = found.trailing_metadata
    assert key == "grpc-status-details-bin"
    whole = Status.FromString(value)
    info = ErrorInfo()
    assert len(whole.details) == 1
    assert whole.details[0].Unpack(info)
    return whole, info


def test_a_refusal_carries_reason_domain_and_call_id() -> None:
    made = made_of("KEY_UNKNOWN", "No such key.", "c1", {"key": "a"})
    whole, info = packed(made)
    assert (made.code, made.details, whole.message) == (grpc.StatusCode.NOT_FOUND, "No such key.", "No such key.")
    assert (info.reason, info.domain, dict(info.metadata)) == ("KEY_UNKNOWN", "broker", {"key": "a", "call_id": "c1"})


@pytest.mark.parametrize("size", [1 << 10, 1 << 20])
def test_a_refusal_always_fits_what_clients_take(size: int) -> None:
    parts = {f"part{number}": "x" * size for number in range(100)}
    made = made_of("R" * 63, "s" * size, "c" * 32, parts)
    [(_, value)] = made.trailing_metadata
    assert len(made.details) + len(value) < 6 * 1024
