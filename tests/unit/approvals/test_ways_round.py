"""Ways round an approval: another process's older policy, and calls that do what another one would have to wait for."""

from __future__ import annotations

from typing import Any

import pytest
from broker_api.v1 import keys_pb2

from broker.core.model import Import, Key, PolicyDocument, Target
from broker.core.policy.cedar import FIRST_POLICY
from broker.core.policy.guard import Guard
from tests.fakes.shelf import Shelf, kek
from tests.worlds.doorway import Doorway

KEY: dict[str, Any] = {"name": "payments", "type": keys_pb2.KEY_TYPE_EC_P256, "usage": keys_pb2.KEY_USAGE_SIGN}
NO_EXPORT = FIRST_POLICY + '\n@id("stop") forbid (principal, action == Action::"ExportKey", resource);\n'
NO_CAROL = '@id("no") forbid (principal == Operator::"carol", action == Action::"Approve", resource);'


def as_another_process(house: Doorway, needed: dict[str, int]) -> None:
    """One that has looked at the policy just before the newest one was set."""
    first = house.store.get(PolicyDocument, 1)
    house.restart(guard=Guard(first, needed))
    house.guard.watch(house.policies.refresh_when_late)


def test_O_11_a_policy_is_wider_than_the_one_that_it_replaces_whatever_this_process_knows_of() -> None:
    needed = {"widening-policy": 1}
    house = Doorway(needed)
    house.done("bob", "SetPolicy", text=NO_EXPORT, expected_version=1)
    as_another_process(house, needed)
    assert house.refused("alice", "SetPolicy", text=FIRST_POLICY, expected_version=2) == "APPROVAL_REQUIRED"
    assert house.guard.document.text == NO_EXPORT
    assert house.refused("alice", "SetPolicy", text=FIRST_POLICY, expected_version=3) == "CHANGED_MEANWHILE"


def test_O_11_a_grant_counts_under_the_newest_policy() -> None:
    house = Doorway({"CreateKey": 1})
    name = house.wanting("alice", "CreateKey", **KEY)
    house.done("carol", "Approve", id=name)
    house.done("bob", "SetPolicy", text=FIRST_POLICY + NO_CAROL, expected_version=1)
    as_another_process(house, {"CreateKey": 1})
    assert house.refused("alice", "CreateKey", **KEY) == "APPROVAL_REQUIRED"
    assert house.store.get(Key, "payments") is None


ASKED = '@id("r") @approvals("1") permit (principal, action == Action::"RotateKey", resource);'


@pytest.mark.parametrize(("needed", "more"), [({"RotateKey": 1}, ""), ({}, ASKED)])
def test_O_11_a_schedule_needs_the_approvals_of_the_rotations_that_it_makes(needed: dict[str, int], more: str) -> None:
    house = Doorway(needed, policy=FIRST_POLICY + more)
    house.done("alice", "CreateKey", **KEY)
    wish = {"name": "payments", "every": {"seconds": 3600}}
    name = house.wanting("alice", "SetKeySchedule", **wish)
    house.done("bob", "Approve", id=name)
    house.done("alice", "SetKeySchedule", **wish)
    house.clock.forward(hours=2)
    house.do_chores(house.schedules)
    assert house.store.get(Key, "payments").latest == 2


def test_O_11_a_rotation_needs_the_approvals_of_the_imports_that_it_makes() -> None:
    shelf = Shelf()
    house = Doorway({"ImportKey": 1}, connect=shelf)
    house.done("alice", "CreateKey", **KEY, exportable=True)
    found = kek()
    target = Target(
        name="prod", kind="shelf", settings={}, kek_id=found.id, kek_thumbprint=found.thumbprint,
        created_at=house.clock(),
    )  # fmt: skip
    with house.store.write(house.own().outcome()) as write:
        write.add(target)
    house.done("alice", "RotateKey", name="payments", everywhere=True)
    name = house.wanting("alice", "ImportKey", name="payments", target="prod")
    house.done("bob", "Approve", id=name)
    house.done("alice", "ImportKey", name="payments", target="prod")
    latest = house.store.get(Key, "payments").latest
    assert house.refused("alice", "RotateKey", name="payments", everywhere=True) == "APPROVAL_REQUIRED"
    assert house.store.get(Key, "payments").latest == latest
    assert len(house.store.page(Import, limit=9)) == 1
