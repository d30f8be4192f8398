"""Operations as people see them: who may, what is shown, trying again and giving up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import pytest

from broker.core.call import Call
from broker.core.errors import (
    BrokerError,
    Exhausted,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    Unavailable,
    WrongState,
)
from broker.core.kinds import OperationState
from broker.core.model import Operation, Principal
from broker.core.operations.oversight import WAITING
from broker.core.operations.plan import Plan, Step, Work
from broker.core.policy.cedar import FIRST_POLICY
from tests.fakes.background import carry_on
from tests.fakes.calls import ADMIN, call, operator
from tests.fakes.refusals import refused
from tests.worlds.world import World

AWAY = Unavailable("TARGET_UNREACHABLE", "Away.")
PAY = """
@id("pay") permit (principal == Operator::"pat", action, resource == Key::"pay");
@id("list") permit (principal == Operator::"pat", action == Action::"ListOperations", resource);
"""


class House(World):
    """Two plans, of which one can be turned back; ``trouble``: what their first step meets."""

    def __init__(self, ticks: Callable[[], float] = float) -> None:
        super().__init__(policy=FIRST_POLICY + PAY, ticks=ticks)
        self.trouble: BrokerError | None = AWAY
        self.undone: list[str] = []
        step = Step(name="send", act=self._send)
        plan: Any = {"steps": (step, Step(name="prove", act=lambda _: None)), "patience": timedelta(minutes=1)}
        self.plan = self.operations.admit(Plan(kind="send", undo=self._back, place=lambda _: "prod", **plan))
        self.forward = self.operations.admit(Plan(kind="only-on", **plan))

    def _send(self, _work: Work) -> Mapping[str, str]:
        if self.trouble:
            raise self.trouble
        return {}

    def _back(self, work: Work) -> None:
        self.undone.append(work.operation.subject)

    def call(self, rpc: str, who: Principal = ADMIN, *, request_id: str = "", validate_only: bool = False) -> Call:
        rpc = f"OperationService/{rpc}"
        return call(rpc, who, self.clock, request_id=request_id, validate_only=validate_only)

    def begun(self, subject: str = "key/pay/1", plan: Plan | None = None) -> str:
        asked = call("KeyService/RotateKey", ADMIN, self.clock)
        with self.store.write(asked.intent()) as write:
            operation = self.operations.begin(write, asked, plan or self.plan, subject)
        with pytest.raises(Unavailable):
            self.operations.run(asked, operation)
        return f"{subject}/1"

    def row(self, subject: str = "key/pay/1") -> Operation:
        found: Operation | None = self.store.get(Operation, subject, 1)
        assert found is not None
        return found


@pytest.fixture
def house() -> House:
    return House()


def test_one_that_waits_is_shown_with_its_steps_and_whom_it_waits_for(house: House) -> None:
    shown = house.oversight.get(house.call("GetOperation"), house.begun())
    assert shown.plan is not None
    assert ([step.name for step in shown.plan.steps], shown.operation.step) == (["send", "prove"], 0)
    assert (shown.name, shown.place, shown.abortable) == ("key/pay/1/1", "prod", True)


def test_retrying_does_not_wait_for_the_pause_but_for_a_call_that_may_be_at_it(house: House) -> None:
    name = house.begun()
    assert carry_on(house.operations, house.clock) == 0, "its call may still be at it"
    house.oversight.retry(house.call("RetryOperation"), name)
    assert carry_on(house.operations, house.clock) == 0
    assert house.row().failure == "", "what a second one does could be on no record"
    house.clock.forward(minutes=1)
    assert carry_on(house.operations, house.clock) == 0
    assert house.row().failure == "TARGET_UNREACHABLE"
    house.trouble = None
    house.oversight.retry(house.call("RetryOperation"), name)
    assert carry_on(house.operations, house.clock) == 1, "though the pause is not over"
    assert house.row().state is OperationState.DONE
    over = house.row()
    assert house.oversight.retry(house.call("RetryOperation"), name).operation == over


def test_giving_up_undoes_it_in_the_background_and_only_once(house: House) -> None:
    name = house.begun()
    asked = house.call("AbortOperation", request_id="once-0001")
    assert house.oversight.abort(asked, name).operation.state is OperationState.UNDOING
    again = house.call("AbortOperation", request_id="once-0001")
    assert house.oversight.abort(again, name).operation.state is OperationState.UNDOING
    assert house.oversight.abort(house.call("AbortOperation"), name).operation.state is OperationState.UNDOING
    assert (carry_on(house.operations, house.clock), house.undone) == (0, []), "its call may still be at it"
    house.clock.forward(minutes=1)
    carry_on(house.operations, house.clock)
    assert (house.row().state, house.row().failure, house.undone) == (OperationState.UNDONE, "GIVEN_UP", ["key/pay/1"])
    refused(lambda: house.oversight.abort(house.call("AbortOperation"), name), WrongState, "OPERATION_OVER")


def test_what_only_goes_forward_is_not_given_up(house: House) -> None:
    name = house.begun(plan=house.forward)
    assert not house.oversight.get(house.call("GetOperation"), name).abortable
    refused(lambda: house.oversight.abort(house.call("AbortOperation"), name), WrongState, "OPERATION_ONLY_FORWARD")


def test_a_dry_run_changes_nothing(house: House) -> None:
    name, before = house.begun(), house.row()
    for method, act in (("RetryOperation", house.oversight.retry), ("AbortOperation", house.oversight.abort)):
        act(house.call(method, validate_only=True), name)
    assert house.row() == before


def test_who_may_not_see_the_key_sees_nothing_of_its_operations(house: House) -> None:
    pat = operator("pat")
    house.begun()
    house.begun("key/payroll/1")
    house.begun("root/2")
    house.begun("import/pay/1/prod/pay")
    seen = house.oversight.page(house.call("ListOperations", pat), "", (), 10, live=True)
    assert [one.name for one in seen.items] == ["import/pay/1/prod/pay/1", "key/pay/1/1"]
    for name in ("key/payroll/1/1", "root/2/1", "key/none/1/1", "target/none/1"):
        refused(
            lambda: house.oversight.get(house.call("GetOperation", pat), name),  # noqa: B023
            PermissionDenied,
            "POLICY_DENIED",
        )
    refused(
        lambda: house.oversight.get(house.call("GetOperation", pat), "key/pay/7/1"), NotFound, "OPERATION_NOT_FOUND"
    )


def test_a_list_about_one_key_has_none_of_another_whose_name_begins_so(house: House) -> None:
    house.begun()
    house.begun("key/payroll/1")
    page = house.oversight.page(house.call("ListOperations"), "key/pay", (), 10, live=False)
    assert [one.name for one in page.items] == ["key/pay/1/1"]


@pytest.mark.parametrize(
    "name",
    ["", "/", "key/pay", "key/pay/x", "key/pay/-1", "/1", "k" * 600 + "/1", "key/pay/²", "key/a\0b/1", "key/\u00fc/1"],
)
def test_what_is_no_name_is_refused_in_one_sentence(house: House, name: str) -> None:
    refused(lambda: house.oversight.get(house.call("GetOperation"), name), InvalidRequest, "OPERATION_NAME_INVALID")


def test_so_many_wait_at_a_time_and_no_more() -> None:
    waiting: list[str] = []

    def ticks() -> float:
        if waiting:
            waiting.append("")
            if len(waiting) <= WAITING + 1:
                world.oversight.wait(world.call("WaitOperation"), waiting[0], None)
        return 0.0

    world = House(ticks)
    waiting.append(world.begun())
    refused(lambda: world.oversight.wait(world.call("WaitOperation"), waiting[0], None), Exhausted, "WAITERS_BUSY")
