"""The noun behind TrustService, on a store and the first policy."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from broker.core.errors import AlreadyExists, InvalidRequest, NotFound, PermissionDenied, Unauthenticated, WrongState
from broker.core.identity import ClaimFinding
from broker.core.model import TrustRule
from tests.fakes.trust_house import BOB, House, verified
from tests.servers.rules import rule

REQUEST = "0b7e8f3e-1f5f-4c7e-9d59-0f6a4b3a2c1d"


def test_a_rule_is_kept_with_its_grade() -> None:
    house = House()
    made = house.rules.create(house.call("CreateTrustRule"), rule(grade="A", findings=("made up",), revision=7))
    assert (made.grade, made.created_at, made.revision) == ("A", house.clock.time, 1)
    assert made.findings == ()
    assert house.rules.get(house.call("GetTrustRule"), "deploy") == made
    assert house.rules.page(house.call("ListTrustRules"), (), 10).items == [made]
    assert house.store.entries[0].resource == "trustrule/deploy"
    assert house.store.entries[0].facts["issuer"] == "https://ci.example"


def test_a_name_is_taken_once() -> None:
    house = House()
    house.rules.create(house.call("CreateTrustRule"), rule())
    for dry in (False, True):
        with pytest.raises(AlreadyExists):
            house.rules.create(house.call("CreateTrustRule", validate_only=dry), rule())


def test_a_request_that_is_repeated_does_nothing_again() -> None:
    house = House()
    made = house.rules.create(house.call("CreateTrustRule", request_id=REQUEST), rule())
    assert house.rules.create(house.call("CreateTrustRule", request_id=REQUEST), rule()) == made
    with house.store.write(house.call("-").outcome()) as write:
        assert len(write.page(TrustRule, limit=9)) == 1


def test_a_dry_run_grades_and_keeps_nothing() -> None:
    house = House()
    assert house.rules.create(house.call("CreateTrustRule", validate_only=True), rule()).grade == "A"
    assert house.store.get(TrustRule, "deploy") is None


def test_an_update_needs_the_newest_revision() -> None:
    house = House()
    made = house.rules.create(house.call("CreateTrustRule"), rule())
    changed = house.rules.update(house.call("UpdateTrustRule"), replace(made, audience="other"))
    assert (changed.audience, changed.revision, changed.created_at) == ("other", 2, made.created_at)
    for dry in (False, True):
        with pytest.raises(WrongState) as refused:
            house.rules.update(house.call("UpdateTrustRule", validate_only=dry), replace(made, audience="third"))
        assert refused.value.reason == "CHANGED_MEANWHILE"


def test_an_update_to_a_weak_rule_leaves_the_old_one() -> None:
    house = House()
    made = house.rules.create(house.call("CreateTrustRule"), rule())
    with pytest.raises(InvalidRequest):
        house.rules.update(house.call("UpdateTrustRule"), replace(made, audience=""))
    assert house.store.get(TrustRule, "deploy") == made


def test_AZ_05_nobody_gives_a_rule_to_a_pipeline_that_is_not_theirs() -> None:
    house = House()
    made = house.rules.create(house.call("CreateTrustRule", BOB), rule())
    with pytest.raises(PermissionDenied):
        house.rules.create(house.call("CreateTrustRule", BOB), rule("second", pipeline="payments"))
    with pytest.raises(PermissionDenied):
        house.rules.update(house.call("UpdateTrustRule", BOB), replace(made, pipeline="payments"))
    theirs = house.rules.create(house.call("CreateTrustRule"), rule("theirs", pipeline="payments", audience="x"))
    with pytest.raises(PermissionDenied):
        house.rules.update(house.call("UpdateTrustRule", BOB), replace(theirs, pipeline="deploy"))


def test_the_permission_is_decided_before_anything_is_told() -> None:
    house = House()
    for name in ("deploy", "missing"):
        with pytest.raises(PermissionDenied):
            house.rules.get(house.call("GetTrustRule", BOB), name)
        with pytest.raises(PermissionDenied):
            house.rules.test(house.call("TestTrustRule", BOB), name, "x")
    with pytest.raises(NotFound):
        house.rules.get(house.call("GetTrustRule"), "missing")


def test_deleting_takes_the_rule_away() -> None:
    house = House()
    house.rules.create(house.call("CreateTrustRule"), rule())
    house.rules.delete(house.call("DeleteTrustRule", validate_only=True), "deploy")
    assert house.store.get(TrustRule, "deploy") is not None
    house.rules.delete(house.call("DeleteTrustRule", request_id=REQUEST), "deploy")
    house.rules.delete(house.call("DeleteTrustRule", request_id=REQUEST), "deploy")
    with pytest.raises(NotFound):
        house.rules.delete(house.call("DeleteTrustRule"), "deploy")


def test_a_test_tells_every_claim_with_both_values() -> None:
    house = House()
    house.rules.create(house.call("CreateTrustRule"), rule())
    step = ClaimFinding(name="exp", passed=False, expected="an integer after 5", found="4")
    house.said = verified({"project_id": "43"}, findings=(step,), expires_at=house.clock.time - timedelta(hours=1))
    found = house.rules.test(house.call("TestTrustRule"), "deploy", "x")
    assert [(each.name, each.passed, each.expected, each.found) for each in found] == [
        ("exp", False, "an integer after 5", "4"),
        ("aud", True, "broker", "broker"),
        ("jti", True, "an id, since the rule is for single use (--reusable is not)", "t1"),
        ("project_id", False, "42", "43"),
    ]


def test_a_test_tells_nothing_of_claims_that_nobody_signed() -> None:
    house = House()
    house.rules.create(house.call("CreateTrustRule"), rule())
    house.said = Unauthenticated("TOKEN_SIGNATURE", "It does not hold.")
    house.said.facts = {"claim": "signature", "claim_expected": "holds", "claim_found": "does not hold"}
    (finding,) = house.rules.test(house.call("TestTrustRule"), "deploy", "x")
    assert (finding.name, finding.passed, finding.found) == ("signature", False, "does not hold")
