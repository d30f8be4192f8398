"""Who calls what is for others: a denial like any other, whatever the policy says."""

from __future__ import annotations

import pytest

from broker.core.errors import PermissionDenied
from broker.core.model import Principal
from broker.core.policy.cedar import ACTIONS, is_for
from broker.core.policy.guard import BROKER, Guard, of_unknown_key
from tests.fakes.calls import Clock, call, document


def test_AZ_05_what_is_not_for_such_a_caller_is_a_denial_and_no_fault_of_the_policy() -> None:
    everything = Guard(document('@id("all") permit (principal, action, resource);'))
    for kind, action in (("pipeline", "Sign"), ("robot", "Sign"), ("", "Sign"), ("broker", "Sign")):
        asked = call(f"KeyService/{action}", Principal(kind=kind, name="deploy", method="session"), Clock())
        with pytest.raises(PermissionDenied) as denied:
            everything.check(asked, of_unknown_key("payments"))
        assert (denied.value.reason, asked.decision, asked.policies) == ("POLICY_DENIED", "deny", ())


@pytest.mark.parametrize("action", sorted(action for action in ACTIONS if not is_for("Pipeline", action)))
def test_AZ_05_a_session_on_an_operators_method_is_denied_by_no_fault(action: str) -> None:
    everything = Guard(document('@id("all") permit (principal, action, resource);'))
    asked = call(f"Service/{action}", Principal(kind="pipeline", name="deploy", method="session"), Clock())
    with pytest.raises(PermissionDenied) as denied:
        everything.check(asked, BROKER)
    assert (denied.value.reason, asked.decision) == ("POLICY_DENIED", "deny")
