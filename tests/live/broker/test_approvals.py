"""Four eyes on a running broker: every change waits for another operator, and nothing of it is done before."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from broker.core.approvable import APPROVABLE
from tests.live.broker.live_story import EC_P256, SIGN, fresh, story
from tests.live.broker.test_methods import BY_OTHERS, MUTATIONS, told, version_in_force
from tests.servers.live import Client, Live
from tests.servers.openbao import OpenBao
from tests.servers.refusals import Refused


@pytest.fixture(scope="module")
def admin(live: Live) -> Client:
    return live.client()


@pytest.fixture(scope="module")
def watched(live: Live, admin: Client) -> Client:
    """An operator whose every change needs an approval, by the policy."""
    return live.operator(admin, fresh("watched"), "watched")


def waits(caller: Client, rpc: str, **fields: Any) -> Refused:
    error = caller.refusal(rpc, **fields)
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "APPROVAL_REQUIRED"), (rpc, error)
    return error


def test_AZ_17_every_change_waits_for_another_operator_and_goes_through_once(
    live: Live, admin: Client, watched: Client, openbao: OpenBao
) -> None:
    seen = set()
    for rpc, fields, answers in told(story(openbao, version_in_force(admin))):
        if rpc in APPROVABLE:
            seen.add(rpc)
            count = len(live.records())
            error = waits(watched, rpc, **fields)
            [only] = live.since(count)
            assert (only["call"], only["outcome"], only["decision"]) == (error.call_id, error.code, "allow"), rpc
            assert only["facts"]["approval"] == error.metadata["approval"]
            admin.ask("Approve", id=error.metadata["approval"])
        again = {"request_id": str(uuid.uuid4())} if rpc in MUTATIONS else {}
        answers.append(watched.ask(rpc, **fields, **again))
        if again:  # the same once more, and no other approval is needed for it
            watched.ask(rpc, **fields, **again)
    assert seen == APPROVABLE.keys() - BY_OTHERS


def test_AU_09_the_calls_about_approvals_leave_one_outcome_each(live: Live, admin: Client, watched: Client) -> None:
    nobody = live.operator(admin, fresh("nobody"), "nothing")
    name = waits(watched, "CreateKey", name=fresh("k"), type=EC_P256, usage=SIGN).metadata["approval"]
    for rpc in ("GetApproval", "Approve", "Reject"):
        count = len(live.records())
        assert nobody.refusal(rpc, id=name).reason == "POLICY_DENIED"
        admin.ask(rpc, id=name)
        denied, allowed = live.since(count)
        assert (denied["decision"], denied["resource"]) == ("deny", f"approval/{name}")
        assert (allowed["outcome"], allowed["resource"]) == ("ok", f"approval/{name}")
    assert watched.refusal("Approve", id=name).reason == "APPROVAL_OWN"


def test_only_the_exact_request_goes_through(admin: Client, watched: Client) -> None:
    asked = {"name": fresh("k"), "type": EC_P256, "usage": SIGN}
    name = waits(watched, "CreateKey", **asked).metadata["approval"]
    admin.ask("Approve", id=name)
    waits(watched, "CreateKey", **asked, exportable=True)
    assert watched.ask("CreateKey", **asked).key.name == asked["name"]
    found = admin.ask("GetApproval", id=name).approval
    assert (found.state, found.details["name"]) == (3, asked["name"])
