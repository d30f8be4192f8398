"""What can wait for approvals is what changes something, as the API declares it, and each exception is named."""

from __future__ import annotations

from broker.core.approvable import APPROVABLE, CASES, MOST, PRODUCTION
from broker.core.policy.cedar import is_for
from broker.core.traits import Effect
from broker.rpc import table

NEVER = {
    "Approve",
    "Reject",
    "RenewCertificate",  # one's own; who approves must be able to call
    "Login",
    "FetchSecrets",
    "RenewSession",
    "EndSession",
    "SignAuditHead",  # it looks, and writes down what it saw
    "ProveImport",
    "CheckDrift",
}


def test_every_method_that_changes_something_can_wait_for_approvals_or_is_named_here() -> None:
    methods = [each for service in table.declared().values() for each in service.methods]
    changing = {each.name for each in methods if table.traits(each).effect is Effect.CHANGES}
    assert APPROVABLE.keys() == changing - NEVER
    assert changing >= NEVER
    assert all(is_for("Operator", action) for action in APPROVABLE)


def test_the_cases_and_the_preset_are_of_these_actions() -> None:
    assert {action for among in CASES.values() for action in among} <= APPROVABLE.keys()
    assert PRODUCTION.keys() <= APPROVABLE.keys() | CASES.keys()
    assert set(PRODUCTION.values()) <= set(range(1, MOST + 1))
