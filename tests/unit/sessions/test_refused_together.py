"""One refusal for several items of a request: all of them told, and nothing of what a caller may not know."""

from __future__ import annotations

import pytest
from broker_api.v1.sessions_pb2 import RefusedItems
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from broker.core.errors import BrokerError, InvalidRequest, NotFound, PermissionDenied, Refused, Unavailable, together
from broker.core.gate import method
from broker.rpc import status
from tests.fakes.memory_store import MemoryStore
from tests.fakes.refusals import refused
from tests.unit.sessions.bench import Bench, pipeline


@pytest.fixture
def bench() -> Bench:
    made = Bench(MemoryStore())
    made.add_rule()
    made.put("app/db", password=b"canary-1", user=b"u")
    made.put("app/my_api.v2", key=b"canary-2")
    made.put("other/db", password=b"canary-3")
    return made


def unfetched(bench: Bench, *references: str) -> BrokerError:
    return refused(lambda: bench.fetch(pipeline(), *references))


def told(error: BrokerError) -> dict[int, str]:
    return {place: one.reason for one in error.refused for place in one.places}


def test_P50_every_reference_that_fails_is_told_at_once(bench: Bench) -> None:
    asked = [
        "app/db#password",
        "app/db#pasword",
        "app/nothing#x",
        "app/db@7#user",
        "other/db#password",
        "app/db@1#user",
    ]
    error = unfetched(bench, *asked)
    assert told(error) == {
        1: "FIELD_NOT_FOUND",
        2: "SECRET_NOT_FOUND",
        3: "SECRET_VERSION_NOT_FOUND",
        4: "POLICY_DENIED",
    }
    assert (type(error), error.reason) == (NotFound, "FIELD_NOT_FOUND")
    assert "4 of 6 references are refused: 2 (FIELD_NOT_FOUND), 3 (SECRET_NOT_FOUND), " in error.message
    alone = {place: unfetched(bench, asked[place]) for place in told(error)}
    assert {(one.reason, one.message) for one in error.refused} == {(one.reason, one.message) for one in alone.values()}


def test_P50_one_of_several_is_told_by_its_place(bench: Bench) -> None:
    error = unfetched(bench, "app/my_api.v2#key", "app/db#x", "app/db")
    assert told(error) == {1: "FIELD_NOT_FOUND"}
    assert error.message.endswith("It is number 2 of 3 references.")
    assert unfetched(bench, "app/db#x").message == error.refused[0].message


def test_P50_who_may_not_fetch_it_learns_of_no_secret_whether_it_is_there(bench: Bench) -> None:
    errors = [
        unfetched(bench, "app/db#password", name, "app/nothing")
        for name in ("other/db#password", "other/db@9#no", "other/nothing#password")
    ]
    assert len({(one.reason, one.message, one.refused, str(one.metadata)) for one in errors}) == 1


def test_P50_references_that_are_none_are_told_by_their_places(bench: Bench) -> None:
    error = unfetched(bench, "app/db", "app/My_DB", "app/db@0", "/".join("abcdefghi"), "app/db#-canary")
    assert told(error) == dict.fromkeys((1, 2, 3, 4), "REFERENCE_INVALID")
    assert "its segment 2: it has an upper-case letter" in str(error.refused)
    assert "it has 9 segments" in str(error.refused)


def test_nothing_is_used_up_by_a_fetch_that_is_refused(bench: Bench) -> None:
    bench.change_rule(single_use=True)
    job = pipeline(jti="once", revision=2)
    with pytest.raises(NotFound):
        bench.fetch(job, "app/db", "app/nothing")
    assert bench.fetch(job, "app/db")[1]


def test_the_first_decides_the_status_and_a_wait_is_kept() -> None:
    away = Unavailable("HSM_UNAVAILABLE", "The HSM is away.", retry_after_seconds="3")
    error = together({3: PermissionDenied("POLICY_DENIED", "No."), 1: away, 2: away}, "references", 4)
    assert (type(error), error.reason, error.metadata) == (Unavailable, "HSM_UNAVAILABLE", {"retry_after_seconds": "3"})
    assert error.refused == (
        Refused(reason="HSM_UNAVAILABLE", message="The HSM is away.", places=(1, 2)),
        Refused(reason="POLICY_DENIED", message="No.", places=(3,)),
    )


@pytest.mark.parametrize("reasons", [1, 100])
def test_a_refusal_of_many_items_fits_what_clients_take(reasons: int) -> None:
    refusals: dict[int, BrokerError] = {
        place: InvalidRequest("R" * 60 + str(place % reasons), "s" * 2000) for place in range(100)
    }
    error = together(refusals, "references", 100)
    made = status.refusal(method.refusal("c" * 32, error))
    [(_, value)] = made.trailing_metadata or ()
    assert isinstance(value, bytes)
    assert len(made.details or "") + len(value) < 6 * 1024
    info, items = ErrorInfo(), RefusedItems()
    whole = Status.FromString(value)
    assert [whole.details[0].Unpack(info), whole.details[1].Unpack(items)] == [True, True]
    assert len(items.groups) == min(reasons, 6)
