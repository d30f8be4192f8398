"""Operations by themselves: one owner, one outcome, a clear record, whichever process carries on, whatever was lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import pytest

from broker.core.call import Call, background_call
from broker.core.entries import Phase
from broker.core.errors import BrokerError, Unavailable, WrongState
from broker.core.kinds import OperationState
from broker.core.model import Operation
from broker.core.operations.plan import Act, Plan, Step, Work
from broker.core.operations.running import BATCH, KEEP, Operations
from tests.fakes.background import carry_on, operations
from tests.fakes.calls import Clock, call
from tests.fakes.memory_store import MemoryStore

TARGETS = ("aws", "bao", "vault")


class Process:
    """A process that sends a key to three targets, each of which can be away or refuse; ``sent`` outlives it."""

    def __init__(self, store: MemoryStore, clock: Clock, sent: dict[str, int]) -> None:
        self.store, self.clock, self.sent = store, clock, sent
        self.trouble: dict[str, BrokerError] = {}
        self.operations: Operations = operations(store, clock)
        self.plan = self.operations.admit(
            Plan(
                kind="send",
                steps=tuple(Step(name=name, act=self._to(name)) for name in TARGETS),
                patience=timedelta(minutes=1),
                undo=self._back,
                place=lambda row: row.subject,
            )
        )

    def _to(self, name: str) -> Act:
        def act(_work: Work) -> Mapping[str, str]:
            if name in self.trouble:
                raise self.trouble[name]
            self.sent[name] = self.sent.get(name, 0) + 1
            return {name: "sent"}

        return act

    def _back(self, work: Work) -> None:
        for name in work.memory:
            self.sent.pop(name, None)

    def call(self) -> Call:
        return call("KeyService/RotateKey", clock=self.clock)

    def begin(self) -> Operation:
        asked = self.call()
        with self.store.write(asked.intent()) as write:
            return self.operations.begin(write, asked, self.plan, "key/pay")

    def row(self, number: int = 1) -> Operation:
        found = self.store.get(Operation, "key/pay", number)
        assert found is not None
        return found

    def later(self, **duration: float) -> int:
        self.clock.forward(**duration)
        return carry_on(self.operations, self.clock)


@pytest.fixture
def process() -> Process:
    return Process(MemoryStore(), Clock(), {})


def another(process: Process) -> Process:
    return Process(process.store, process.clock, process.sent)


def test_each_step_is_done_once_and_the_outcome_closes_the_call(process: Process) -> None:
    asked, begun = process.call(), process.begin()
    done = process.operations.run(asked, begun)
    assert (done.state, process.sent) == (OperationState.DONE, dict.fromkeys(TARGETS, 1))
    assert asked.closed
    assert [entry.phase for entry in process.store.entries] == [Phase.INTENT] * 3 + [Phase.OUTCOME]
    assert done.memory == {}


def test_a_target_that_is_away_leaves_the_rest_for_the_background(process: Process) -> None:
    process.trouble["bao"] = Unavailable("TARGET_UNREACHABLE", "Away.")
    with pytest.raises(Unavailable):
        process.operations.run(process.call(), process.begin())
    assert process.later(seconds=30) == 0, "its call may still be at it"
    assert process.later(minutes=1) == 0
    assert (process.row().failure, process.row().attempts) == ("TARGET_UNREACHABLE", 1)
    assert process.later(seconds=5) == 0
    assert process.row().attempts == 1, "recorded once for each reason"
    process.trouble.clear()
    assert process.later(seconds=20) == 1
    assert process.sent == dict.fromkeys(TARGETS, 1), "what was done is not done again"


def test_a_refusal_undoes_what_was_done_and_is_what_the_caller_is_told(process: Process) -> None:
    process.trouble["vault"] = WrongState("TARGET_DENIED", "No.")
    with pytest.raises(WrongState, match="No"):
        process.operations.run(process.call(), process.begin())
    assert (process.sent, process.row().state, process.row().failure) == ({}, OperationState.UNDONE, "TARGET_DENIED")


def test_two_processes_at_one_operation_have_one_outcome(process: Process) -> None:
    begun, other = process.begin(), another(process)
    assert other.operations.run(other.call(), begun).state is OperationState.DONE
    asked = process.call()
    assert process.operations.run(asked, begun).state is OperationState.DONE, "the other's outcome is its own"
    assert not asked.closed, "whose record is the gate's to write"
    assert process.row().revision == 4


def test_a_slow_first_runner_stops_when_another_has_given_it_up(process: Process) -> None:
    begun, other = process.begin(), another(process)
    other.trouble["aws"] = WrongState("TARGET_DENIED", "No.")
    with pytest.raises(WrongState):
        other.operations.run(other.call(), begun)
    with pytest.raises(WrongState) as found:
        process.operations.run(process.call(), begun)
    assert found.value.reason == "CHANGED_MEANWHILE"
    assert process.row().state is OperationState.UNDONE


def test_a_slow_first_runner_is_told_that_another_is_at_it(process: Process) -> None:
    begun, other = process.begin(), another(process)
    other.trouble["vault"] = Unavailable("TARGET_UNREACHABLE", "Away.")
    with pytest.raises(Unavailable):
        other.operations.run(other.call(), begun)
    with pytest.raises(Unavailable) as found:
        process.operations.run(process.call(), begun)
    assert found.value.reason == "OPERATION_RUNNING"


def test_a_subject_has_one_operation_at_a_time(process: Process) -> None:
    begun = process.begin()
    with pytest.raises(Unavailable) as found:
        process.begin()
    assert found.value.reason == "OPERATION_RUNNING"
    process.operations.run(process.call(), begun)
    assert process.begin().number == 2


def test_S_18_an_operation_of_a_kind_that_is_not_known_is_left_alone_and_told(process: Process) -> None:
    """As after a downgrade."""
    begun = process.begin()
    with process.store.write(process.call().outcome()) as write:
        write.replace(begun, replace(begun, kind="rotate-everywhere"))
    assert process.later(minutes=2) == 0
    assert (process.row().state, process.row().failure) == (OperationState.RUNNING, "OPERATION_KIND_UNKNOWN")
    assert process.sent == {}


def test_S_18_a_step_that_the_plan_has_not_is_no_step(process: Process) -> None:
    begun = process.begin()
    with process.store.write(process.call().outcome()) as write:
        write.replace(begun, replace(begun, step=7))
    assert process.later(minutes=2) == 0
    assert process.row().failure == "OPERATION_KIND_UNKNOWN"


def test_a_clock_that_steps_back_begins_nothing_twice(process: Process) -> None:
    process.trouble["bao"] = Unavailable("TARGET_UNREACHABLE", "Away.")
    with pytest.raises(Unavailable):
        process.operations.run(process.call(), process.begin())
    process.trouble.clear()
    assert process.later(hours=-1) == 0
    assert process.later(minutes=62) == 1
    assert process.sent == dict.fromkeys(TARGETS, 1)


def test_a_former_leader_carries_nothing_on(process: Process) -> None:
    process.begin()
    process.clock.forward(minutes=2)
    process.store.fence = 2
    (rows,) = process.operations.due().values()
    refusal = None
    with pytest.raises(WrongState) as found:
        refusal = process.operations.carry_on(background_call("key/pay", 1, process.clock), rows[0])
    assert (found.value.reason, refusal) == ("LEADERSHIP_LOST", None)
    assert process.row().step == 0


def test_what_only_goes_forward_is_never_undone(process: Process) -> None:
    plan = process.operations.admit(
        Plan(kind="revoke", steps=process.plan.steps, patience=timedelta(minutes=1), place=lambda row: row.subject)
    )
    process.trouble["aws"] = WrongState("TARGET_DENIED", "No.")
    asked = process.call()
    with process.store.write(asked.intent()) as write:
        begun = process.operations.begin(write, asked, plan, "lease/x")
    with pytest.raises(WrongState):
        process.operations.run(asked, begun)
    for _ in range(20):
        assert process.later(minutes=1) == 0
    process.trouble.clear()
    assert process.later(minutes=1) == 1


def test_what_is_over_is_forgotten_after_a_day(process: Process) -> None:
    process.operations.run(process.call(), process.begin())
    process.clock.forward(seconds=KEEP.total_seconds() + 1)
    for resource, work in process.operations.chores():
        work(background_call(resource, 0, process.clock))
    assert process.store.get(Operation, "key/pay", 1) is None


def test_a_kind_has_one_plan(process: Process) -> None:
    with pytest.raises(ValueError, match="two plans"):
        process.operations.admit(process.plan)


def test_a_subject_that_is_busy_has_more_operations_than_a_page_has(process: Process) -> None:
    for number in range(1, 2 * BATCH + 2):
        begun = process.begin()
        assert begun.number == number
        process.operations.run(process.call(), begun)
