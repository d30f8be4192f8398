"""Four eyes on what happens by itself: a schedule rotates with as many approvals as it was set with, and no further."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from broker_api.v1 import keys_pb2
from google.protobuf.duration_pb2 import Duration

from broker.core.model import Key, PolicyDocument
from broker.core.policy.cedar import FIRST_POLICY
from broker.core.schedule import KeySchedule
from tests.fakes.calls import document
from tests.fakes.refusals import ending
from tests.worlds.doorway import Doorway

KEY: dict[str, Any] = {"name": "pay", "type": keys_pb2.KEY_TYPE_EC_P256, "usage": keys_pb2.KEY_USAGE_SIGN}
SET: dict[str, Any] = {"name": "pay", "every": Duration(seconds=90 * 86400)}
CAREFUL = """
@id("careful") @approvals("2")
permit (principal in Group::"admins", action == Action::"RotateKey", resource);
"""


class House(Doorway):
    def schedule(self) -> KeySchedule:
        found: KeySchedule | None = self.store.get(KeySchedule, "pay")
        assert found is not None
        return found

    def look(self, **forward: float) -> list[str]:
        """What the background does of what is due."""
        self.clock.forward(**forward)
        return [ending(partial(work, self.own(about))) for about, work in self.schedules.chores()]

    def hourly(self) -> int:
        pieces = list(self.schedules.stepped())
        for about, work in pieces:
            work(self.own(about))
        return len(pieces)

    def latest(self) -> int:
        found: Key | None = self.store.get(Key, "pay")
        assert found is not None
        return found.latest

    def held(self) -> list[str]:
        """As the log tells of it, and as people list it."""
        told = [one.key for one in self.schedules.late() if one.failure == "APPROVAL_REQUIRED"]
        assert [key.name for key in self.done("bob", "ListKeys", held=True).keys] == told
        return told

    def approved(self, *by: str) -> None:
        """Set anew, by alice, with the word of these."""
        name = self.wanting("alice", "SetKeySchedule", **SET)
        for who in by:
            self.done(who, "Approve", id=name)
        self.done("alice", "SetKeySchedule", **SET)


@pytest.fixture
def house() -> House:
    made = House({})
    made.done("alice", "CreateKey", **KEY)
    made.done("alice", "SetKeySchedule", **SET)
    return made


def asks_for(house: House, needed: dict[str, int]) -> None:
    """The configuration is another one at the next start."""
    house.guard.approvals = needed


def asks_by_policy(house: House) -> None:
    new = PolicyDocument(version=2, text=document(FIRST_POLICY + CAREFUL).text, author="", created_at=house.clock())
    house.guard.load(new)


def test_a_schedule_of_before_is_held_up_and_told_of_at_once_until_it_is_set_with_approvals(house: House) -> None:
    assert (house.hourly(), house.held(), house.schedule().approvals) == (0, [], 0)
    asks_for(house, {"RotateKey": 1})
    assert (house.hourly(), house.held(), house.schedule().failure) == (1, ["pay"], "APPROVAL_REQUIRED")
    assert house.hourly() == 0, "it is written down once"
    assert house.look(days=91) == ["APPROVAL_REQUIRED"]
    assert (house.latest(), house.held()) == (1, ["pay"])
    house.approved("carol")
    assert (house.schedule().approvals, house.schedule().failure, house.held()) == (1, "", [])
    assert house.look() == ["ok"]
    assert house.latest() == 2
    assert house.look(days=91) == ["ok"], "it was approved to be rotated each time"
    assert house.latest() == 3


def test_the_refusal_is_in_the_audit_and_names_the_repair(house: House) -> None:
    asks_for(house, {"RotateKey": 1})
    house.clock.forward(days=91)
    [(about, work)] = house.schedules.chores()
    with pytest.raises(Exception, match="broker key schedule pay --every TIME"):
        work(house.own(about))
    [entry] = [one for one in house.store.entries if one.rpc == "KeyService/RotateKey"]
    assert (entry.reason, entry.principal) == ("APPROVAL_REQUIRED", "operator/alice")
    assert entry.facts["scheduled_by"] == "operator/alice"


def test_a_policy_that_asks_for_more_than_was_given_holds_it_up_too(house: House) -> None:
    asks_for(house, {"RotateKey": 1})
    house.approved("carol")
    asks_by_policy(house)
    assert (house.hourly(), house.held()) == (1, ["pay"])
    assert house.look(days=91) == ["APPROVAL_REQUIRED"]
    house.approved("carol", "bob")
    assert (house.schedule().approvals, house.look()) == (2, ["ok"])


def test_what_is_asked_for_no_longer_holds_up_nothing(house: House) -> None:
    asks_for(house, {"RotateKey": 1})
    house.hourly()
    asks_for(house, {"SetKeySchedule": 1})  # the setting alone: it was set before
    assert (house.hourly(), house.held(), house.schedule().failure) == (1, [], "")
    assert house.look(days=91) == ["ok"]
    assert house.latest() == 2


def test_what_cannot_be_asked_for_whom_is_not_guessed(house: House) -> None:
    asks_for(house, {"RotateKey": 1})
    house.done("bob", "RemoveOperator", name="alice")
    assert (house.hourly(), house.held()) == (0, [])
    assert house.look(days=91) == ["OPERATOR_NOT_FOUND"]
    assert house.latest() == 1
