"""Four eyes: what needs approvals waits for them, once each, for the exact request and for no other."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from broker_api.v1 import keys_pb2

from broker.core.approval import Approval
from broker.core.gate.asking import ApprovalLimits
from broker.core.kinds import ApprovalState
from broker.core.model import Key, Operator, Receipt, Secret
from tests.fakes.background import carry_on
from tests.worlds.doorway import OPERATORS, Doorway

KEY: dict[str, Any] = {"name": "payments", "type": keys_pb2.KEY_TYPE_EC_P256, "usage": keys_pb2.KEY_USAGE_SIGN}
ONE = {"CreateKey": 1}


def number() -> str:
    return str(uuid.uuid4())


def test_a_call_that_needs_an_approval_waits_and_the_same_request_goes_through_once() -> None:
    house = Doorway(ONE)
    end = house.end("alice", "CreateKey", **KEY, request_id=number())
    name = end.metadata["approval"]
    assert (end.outcome, end.reason) == ("FAILED_PRECONDITION", "APPROVAL_REQUIRED")
    assert f"broker approval approve {name}" in end.sentence
    assert house.store.get(Key, "payments") is None
    entry = house.store.entries[-1]
    assert (entry.decision, entry.reason, entry.facts["approval"]) == ("allow", "APPROVAL_REQUIRED", name)
    assert entry.facts["approval_digest"] == end.metadata["approval_digest"]

    given = house.done("carol", "Approve", id=name, digest=end.metadata["approval_digest"], reason="CHG-4711").approval
    assert [(one.operator, one.reason) for one in given.grants] == [("operator/carol", "CHG-4711")]
    assert house.store.entries[-1].resource == f"approval/{name}"

    request = number()
    made = house.done("alice", "CreateKey", **KEY, request_id=request)
    assert made == house.done("alice", "CreateKey", **KEY, request_id=request), "its repetition needs no other one"
    used = house.store.get(Approval, name)
    assert used.state is ApprovalState.USED
    spent = [
        entry for entry in house.store.entries if entry.facts.get("approval") == name and entry.call_id == used.call
    ]
    assert [entry.phase for entry in spent] == ["intent"], "in the very record of what is done upon it"
    house.done("alice", "ScheduleKeyDestruction", name="payments")
    assert house.wanting("alice", "CreateKey", **KEY | {"name": "other"}) != name


def test_what_it_is_about_is_shown_in_words_without_secrets() -> None:
    house = Doorway({"PutSecret": 1})
    name = house.wanting("dave", "PutSecret", name="team/db", fields={"password": b"canary"}, labels={"team": "x"})
    shown = house.done("carol", "GetApproval", id=name).approval
    assert (
        shown.says
        == "operator/dave asks to write a new version of a secret (its values are not shown): secret/team/db."
    )
    assert dict(shown.details) == {
        "name": "team/db",
        "fields[password]": "a secret value, which is not kept",
        "labels[team]": "x",
    }
    assert (shown.requester, shown.action, shown.needed, len(shown.digest)) == ("operator/dave", "PutSecret", 1, 64)
    assert b"canary" not in repr(house.store.get(Approval, name)).encode()
    assert "canary" not in repr(house.store.entries)


def test_O_11_nobody_approves_what_they_have_asked_for() -> None:
    house = Doorway(ONE)
    name = house.wanting("alice", "CreateKey", **KEY)
    end = house.end("alice", "Approve", id=name)
    assert (end.outcome, end.reason) == ("PERMISSION_DENIED", "APPROVAL_OWN")
    assert house.refused("alice", "CreateKey", **KEY) == "APPROVAL_REQUIRED"


def test_one_operator_counts_once() -> None:
    house = Doorway({"CreateKey": 2})
    name = house.wanting("alice", "CreateKey", **KEY)
    house.done("bob", "Approve", id=name)
    assert house.refused("bob", "Approve", id=name) == "APPROVAL_GIVEN"
    assert house.wanting("alice", "CreateKey", **KEY) == name, "the same one is waited for"
    house.done("carol", "Approve", id=name)
    house.done("alice", "CreateKey", **KEY)


@pytest.mark.parametrize(
    ("who", "changed"),
    [
        ("alice", {"name": "payment"}),
        ("alice", {"exportable": True}),
        ("alice", {"labels": {"team": "x"}}),
        ("bob", {}),
    ],
)
def test_O_11_an_approval_is_for_the_exact_request_and_its_requester(who: str, changed: dict[str, Any]) -> None:
    house = Doorway(ONE)
    name = house.wanting("alice", "CreateKey", **KEY)
    house.done("carol", "Approve", id=name)
    assert house.wanting(who, "CreateKey", **KEY | changed) != name
    assert house.store.page(Key, limit=9) == []
    house.done("alice", "CreateKey", **KEY)


def test_an_approval_of_a_secret_is_for_its_very_values() -> None:
    house = Doorway({"PutSecret": 1, "PatchSecret": 1})
    asked: dict[str, Any] = {"name": "team/db", "fields": {"password": b"one"}}
    name = house.wanting("dave", "PutSecret", **asked)
    assert house.wanting("dave", "PutSecret", **asked) == name
    house.done("carol", "Approve", id=name)
    other = house.wanting("dave", "PutSecret", **asked | {"fields": {"password": b"two"}})
    assert other != name
    assert house.store.get(Secret, "team/db") is None
    house.restart()  # another process has other keys of its own
    house.secrets.refresh()
    house.done("dave", "PutSecret", **asked)
    assert house.refused("dave", "PutSecret", **asked) == "APPROVAL_REQUIRED"


def test_an_approval_expires() -> None:
    house = Doorway(ONE)
    first = house.wanting("alice", "CreateKey", **KEY)
    house.done("carol", "Approve", id=first)
    house.clock.forward(hours=24)
    second = house.wanting("alice", "CreateKey", **KEY)
    assert second != first
    assert house.refused("carol", "Approve", id=first) == "APPROVAL_OVER"
    house.clock.forward(hours=24)
    assert house.refused("carol", "Approve", id=second) == "APPROVAL_OVER"


def test_what_is_over_is_forgotten() -> None:
    house = Doorway(ONE)
    name = house.wanting("alice", "CreateKey", **KEY)
    house.clock.forward(hours=24)
    assert house.do_chores(house.approvals) == 1
    assert house.store.get(Approval, name).state is ApprovalState.EXPIRED
    assert list(house.approvals.chores()) == []
    house.clock.forward(days=7)
    assert house.do_chores(house.approvals) == 1
    assert house.refused("alice", "GetApproval", id=name) == "APPROVAL_NOT_FOUND"


def test_it_survives_restarts_and_a_crash_before_the_change_leaves_it_whole() -> None:
    house = Doorway(ONE)
    name = house.wanting("alice", "CreateKey", **KEY)
    house.restart()
    house.done("carol", "Approve", id=name)
    house.restart()
    house.store.journal_full = True  # what uses it up cannot be made durable
    assert house.refused("alice", "CreateKey", **KEY) == "AUDIT_UNAVAILABLE"
    house.store.journal_full = False
    assert house.store.get(Approval, name).state is ApprovalState.OPEN
    assert house.store.get(Key, "payments") is None
    house.restart()
    house.done("alice", "CreateKey", **KEY)


def test_what_is_carried_on_in_the_background_needs_no_second_one() -> None:
    house = Doorway({**ONE, "RotateKey": 1, "ImportKey": 1})
    house.done("carol", "Approve", id=house.wanting("alice", "CreateKey", **KEY))
    house.done("alice", "CreateKey", **KEY)
    house.done("carol", "Approve", id=house.wanting("alice", "RotateKey", name="payments"))
    house.done("alice", "RotateKey", name="payments")
    for _ in range(9):
        carry_on(house.operations, house.clock)
        house.clock.forward(minutes=1)
    assert house.store.get(Key, "payments").primary == 2


def test_rejected_is_for_good_and_the_requester_can_withdraw() -> None:
    house = Doorway(ONE)
    name = house.wanting("alice", "CreateKey", **KEY)
    house.done("carol", "Approve", id=name)
    gone = house.done("carol", "Reject", id=name, reason="not today").approval
    assert (gone.rejected_by, gone.reason) == ("operator/carol", "not today")
    assert house.refused("bob", "Approve", id=name) == "APPROVAL_OVER"
    own = house.wanting("alice", "CreateKey", **KEY)
    assert own != name
    house.done("alice", "Reject", id=own)
    assert house.store.get(Approval, own).details == {}


def test_bad_input_is_refused_in_a_sentence() -> None:
    house = Doorway(ONE)
    name = house.wanting("alice", "CreateKey", **KEY)
    found = [
        house.refused("carol", "Approve", id="x"),
        house.refused("carol", "Approve", id="0" * 12),
        house.refused("carol", "Approve", id=name, digest="0" * 64),
        house.refused("carol", "Approve", id=name, digest="0" * 65),
        house.refused("carol", "Approve", id=name, reason="x" * 501),
        house.refused("carol", "Reject", id=name, reason="two\nlines"),
        house.refused("dave", "Approve", id=name),
        house.refused("dave", "GetApproval", id=name),
    ]
    assert found == [
        "APPROVAL_ID_INVALID", "APPROVAL_NOT_FOUND", "APPROVAL_DIFFERS", "FIELD_TOO_LONG",
        "APPROVAL_REASON_INVALID", "APPROVAL_REASON_INVALID", "POLICY_DENIED", "POLICY_DENIED",
    ]  # fmt: skip
    assert house.store.get(Approval, name).grants == ()


def test_so_many_wait_and_no_more() -> None:
    limits = ApprovalLimits(per_requester=2, in_all=3)
    house = Doorway(ONE, limits=limits)
    names = [house.wanting("alice", "CreateKey", **KEY | {"name": f"k{place}"}) for place in range(2)]
    assert house.refused("alice", "CreateKey", **KEY) == "APPROVAL_QUOTA"
    house.wanting("bob", "CreateKey", **KEY)
    assert house.refused("dave", "CreateKey", **KEY) == "APPROVAL_QUOTA"
    assert house.wanting("alice", "CreateKey", **KEY | {"name": "k0"}) == names[0]
    house.done("alice", "Reject", id=names[0])
    house.wanting("dave", "CreateKey", **KEY)
    house.clock.forward(hours=24)
    assert house.refused("dave", "CreateKey", **KEY) == "APPROVAL_REQUIRED", "what has expired takes no room"


def over(house: Doorway) -> list[str]:
    return [row.id for row in house.store.page(Approval, limit=99) if row.state is not ApprovalState.OPEN]


def withdrawn(house: Doorway, who: str = "alice") -> str:
    name = house.wanting(who, "CreateKey", **KEY)
    house.clock.forward(seconds=1)
    house.done(who, "Reject", id=name)
    return name


def test_of_what_is_over_the_oldest_goes_first_and_nobody_drives_out_what_others_had() -> None:
    house = Doorway(ONE, limits=ApprovalLimits(per_requester=2, in_all=3, over_for_each=2))
    theirs = withdrawn(house, "bob")
    mine = [withdrawn(house) for _ in range(8)]
    assert set(over(house)) == {theirs, *mine[-4:]}
    forgotten = house.end("carol", "GetApproval", id=mine[0])
    assert forgotten.reason == "APPROVAL_NOT_FOUND"
    assert mine[0] in {entry.facts.get("approval") for entry in house.store.entries}, "the audit has it for good"
    more = [withdrawn(house, "dave") for _ in range(3)]
    assert theirs not in over(house), "of all the oldest one"
    assert set(more) < set(over(house))
    assert len(over(house)) == 6


def test_what_was_used_is_not_forgotten_while_its_call_may_be_at_it() -> None:
    house = Doorway(ONE, limits=ApprovalLimits(per_requester=1, in_all=3, over_for_each=2))
    for place in range(2):
        asked = KEY | {"name": f"k{place}"}
        house.done("carol", "Approve", id=house.wanting("alice", "CreateKey", **asked))
        house.done("alice", "CreateKey", **asked)
    end = house.end("alice", "CreateKey", **KEY)
    assert (end.reason, end.outcome) == ("APPROVAL_QUOTA", "RESOURCE_EXHAUSTED")
    assert "try again in an hour" in end.sentence
    house.wanting("bob", "CreateKey", **KEY)
    house.clock.forward(hours=1, seconds=1)
    house.wanting("alice", "CreateKey", **KEY)
    assert len(over(house)) == 1


def test_O_11_an_approver_who_may_not_any_more_does_not_count() -> None:
    house = Doorway(ONE)
    name = house.wanting("alice", "CreateKey", **KEY)
    house.done("carol", "Approve", id=name)
    house.done("bob", "SetOperatorGroups", name="carol", groups=["auditors"])
    assert house.wanting("alice", "CreateKey", **KEY) == name
    house.done("bob", "SetOperatorGroups", name="carol", groups=["approvers"])
    house.done("bob", "RemoveOperator", name="carol")
    assert house.wanting("alice", "CreateKey", **KEY) == name
    house.done("bob", "Approve", id=name)
    house.done("alice", "CreateKey", **KEY)


def test_where_nobody_could_approve_nobody_is_asked() -> None:
    house = Doorway({"CreateKey": 2, "Approve": 1}, operators={"alice": ("admins",), "bob": ("admins",)})
    end = house.end("alice", "CreateKey", **KEY)
    assert (end.outcome, end.reason) == ("FAILED_PRECONDITION", "APPROVERS_MISSING")
    assert "only 1 may give one" in end.sentence
    assert house.store.page(Approval, limit=9) == []


def test_dry_runs_reads_and_denials_ask_nobody() -> None:
    house = Doorway({**ONE, "AddOperator": 1})
    house.done("alice", "CreateKey", **KEY, validate_only=True)
    house.done("alice", "ListKeys")
    assert house.refused("carol", "CreateKey", **KEY) == "POLICY_DENIED"
    assert house.refused("alice", "CreateKey", **KEY | {"name": "Nope"}) == "NAME_INVALID"
    assert house.store.page(Approval, limit=9) == []


def test_suspended_nothing_is_asked_for() -> None:
    house = Doorway(ONE, limits=ApprovalLimits(suspended=True))
    house.done("alice", "CreateKey", **KEY)


def test_only_what_one_may_see_is_listed() -> None:
    house = Doorway(ONE)
    first = house.wanting("alice", "CreateKey", **KEY)
    second = house.wanting("dave", "CreateKey", **KEY)
    assert {one.id for one in house.done("carol", "ListApprovals", waiting=True).approvals} == {first, second}
    assert {one.id for one in house.done("dave", "ListApprovals").approvals} == {second}
    house.done("carol", "Reject", id=first)
    assert [one.id for one in house.done("carol", "ListApprovals", waiting=True).approvals] == [second]
    assert all(not one.details for one in house.done("carol", "ListApprovals").approvals)


def test_the_requests_of_a_receipt_that_is_gone_need_another_one() -> None:
    house = Doorway(ONE)
    house.done("carol", "Approve", id=house.wanting("alice", "CreateKey", **KEY))
    request = number()
    house.done("alice", "CreateKey", **KEY, request_id=request)
    with house.store.write(house.own().outcome()) as write:
        write.delete(write.get(Receipt, "operator/alice", request))
    assert house.store.get(Operator, "alice").groups == OPERATORS["alice"]
    assert house.refused("alice", "CreateKey", **KEY, request_id=request) == "APPROVAL_REQUIRED"
