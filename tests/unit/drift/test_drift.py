"""Drift: what a look at each place finds, on demand and by itself, and that it changes nothing there."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from broker.core.drift.repairs import repair
from broker.core.errors import WrongState
from broker.core.findings import DriftReport
from broker.core.kinds import Drift, ImportState, KeyType, KeyUsage, Sent, Standing
from broker.core.model import Import, KeyVersion, Operation, Target, Terms
from broker.core.operations.plan import HSM
from broker.core.policy.cedar import FIRST_POLICY
from broker.core.policy.guard import Guard
from tests.fakes.calls import document, operator
from tests.fakes.refusals import ending
from tests.fakes.shelf import Held
from tests.unit.rotations.bench import House

DAILY = timedelta(days=1)


@pytest.fixture
def house() -> House:
    made = House()
    made.furnish()
    return made


def check(house: House, target: str = "prod") -> list[tuple[Drift, int, str]]:
    found = house.drifts.check(house.call("DriftService/CheckDrift"), target).findings
    return [(one.finding.drift, one.finding.version, one.finding.remote_version) for one in found]


def there(house: House) -> Held:
    return house.shelves["prod"].held["pay"][0]


def rewrite(house: House, **changes: Any) -> None:
    old = house.store.get(Import, "pay", 1, "prod", "pay")
    with house.store.write(house.call("ImportService/ImportKey").outcome()) as write:
        write.replace(old, replace(old, **changes))


def test_what_is_as_the_record_says_is_no_finding(house: House) -> None:
    assert (check(house), check(house, "bao"), check(house, "")) == ([], [], [])


def test_a_copy_that_was_disabled_there(house: House) -> None:
    there(house).enabled = False
    assert check(house) == [(Drift.DISABLED, 1, "1")]


def test_a_copy_that_was_to_be_disabled_there_is_as_it_should_be(house: House) -> None:
    asked = house.call("ImportService/ImportKey")
    house.imports.import_key(asked, "pay", 1, "prod", "", Terms(tags={"a": "b"}, enabled=False))
    assert not there(house).enabled
    assert check(house) == []


def test_a_copy_that_was_deleted_there(house: House) -> None:
    house.shelves["prod"].held = {}
    assert check(house) == [(Drift.DELETED, 1, "1")]
    assert house.copies()["prod", 1] is ImportState.PROVEN, "a look writes nothing but its report"


def test_another_key_in_its_place(house: House) -> None:
    there(house).material = ec.generate_private_key(ec.SECP256R1())
    assert check(house) == [(Drift.REPLACED, 1, "1")]


def test_another_symmetric_key_in_its_place_is_found_by_its_use(house: House) -> None:
    asked = house.call("KeyService/CreateKey")
    house.keys.create(asked, "box", KeyType.AES_256, KeyUsage.ENCRYPT, exportable=True, labels={}, owner="")
    house.imports.import_key(house.call("ImportService/ImportKey"), "box", 1, "prod", "")
    assert check(house) == []
    house.shelves["prod"].held["box"][0].material = b"x" * 32
    assert check(house) == [(Drift.REPLACED, 1, "1")]


def test_a_copy_that_can_leave_there(house: House) -> None:
    there(house).exposed = "exportable"
    assert check(house) == [(Drift.EXPORTABLE, 1, "1")]


def test_a_copy_that_was_withdrawn_and_is_in_use_again(house: House) -> None:
    house.rotate(timedelta(0))
    house.rounds(8)
    assert (house.copies()["prod", 1], check(house)) == (ImportState.DISABLED, [])
    there(house).enabled = True
    assert check(house) == [(Drift.ENABLED, 1, "1")]


def test_K06_a_copy_that_had_come_to_nothing_and_is_back(house: House) -> None:
    rewrite(house, state=ImportState.FAILED, failure="REMOTE_KEY_MISSING", sent=Sent.UPLOAD)
    assert check(house) == [(Drift.RETURNED, 1, "1")]


def test_versions_that_the_broker_did_not_bring(house: House) -> None:
    held = house.shelves["prod"].held["pay"]
    held += [Held(ec.generate_private_key(ec.SECP256R1()), "2"), Held(held[0].material, "3")]
    assert check(house) == [(Drift.EXTRA_VERSION, 0, "2"), (Drift.EXTRA_VERSION, 1, "3")]
    for one in held[1:]:
        one.enabled = False
    assert check(house) == [], "what is disabled does no harm"


def test_a_copy_that_is_arriving_or_waits_to_be_confirmed_is_no_extra_version(house: House) -> None:
    for failure in ("EXPORTED", ""):
        rewrite(house, state=ImportState.PENDING, failure=failure, remote_version="")
        assert check(house) == []


def test_BY_14_another_kek_than_the_pinned_one(house: House) -> None:
    stored = house.store.get(Target, "prod")
    with house.store.write(house.call("TargetService/RepinTarget").outcome()) as write:
        write.replace(stored, replace(stored, kek_thumbprint="00" * 32))
    assert check(house) == [(Drift.KEK_CHANGED, 0, "")]


def test_a_key_that_the_token_has_not_got_any_more_and_one_that_may_leave(house: House) -> None:
    asked = house.call("KeyService/CreateKey")
    house.keys.create(asked, "stay", KeyType.EC_P256, KeyUsage.SIGN, exportable=False, labels={}, owner="")
    version = house.store.get(KeyVersion, "stay", 1)
    assert version is not None
    house.ground.hsm.keys[version.hsm_id].extractable = True
    assert check(house, "") == [(Drift.KEY_DIFFERS, 1, "")]
    del house.ground.hsm.keys[version.hsm_id]
    assert check(house, "") == [(Drift.KEY_MISSING, 1, "")]


def test_FT_31_a_target_that_is_away_keeps_its_former_report(house: House) -> None:
    there(house).enabled = False
    check(house)
    before = house.store.get(DriftReport, "prod")
    house.away("prod")
    assert ending(lambda: check(house)) == "TARGET_UNREACHABLE"
    assert house.store.get(DriftReport, "prod") == before


def test_a_finding_keeps_the_time_when_it_was_found_first_and_is_told_to_the_audit_once(house: House) -> None:
    there(house).enabled = False
    check(house)
    since = house.store.get(DriftReport, "prod").findings[0].found_at
    house.clock.forward(days=2)
    check(house)
    report = house.store.get(DriftReport, "prod")
    assert (report.findings[0].found_at, report.checked_at) == (since, house.clock())
    told = [one for one in house.ground.entries() if one.reason == "DRIFT_FOUND"]
    assert [(one.resource, one.facts["state"]) for one in told] == [("key/pay,target/prod", "disabled")]


def test_each_place_is_looked_at_by_itself_every_so_often_and_what_is_new_is_told_once(house: House) -> None:
    house.restart(look_every=DAILY)
    there(house).enabled = False
    house.do_chores(house.drifts)
    house.rounds()
    assert {row.place for row in house.rows(DriftReport)} == {HSM, "bao", "prod"}
    assert [(place, one.finding.drift) for place, one in house.drifts.news()] == [("prod", Drift.DISABLED)]
    assert house.drifts.news() == []
    house.clock.forward(hours=23)
    assert list(house.drifts.chores()) == []
    house.clock.forward(hours=1)
    assert len(list(house.drifts.chores())) == 3
    assert house.shelves["prod"].uploads == 1


def test_without_a_period_nobody_is_asked(house: House) -> None:
    house.restart(look_every=None)
    assert list(house.drifts.chores()) == []


def test_FT_31_a_look_at_a_target_that_is_away_is_made_when_it_is_back(house: House) -> None:
    house.restart(look_every=DAILY)
    house.away("prod")
    house.do_chores(house.drifts)
    house.rounds(5)
    assert house.store.get(DriftReport, "prod") is None
    live = house.store.last(Operation, "target/prod/drift")
    assert (live.failure, house.operations.alarm(live)) == (
        "TARGET_UNREACHABLE", "whether a place is as the record says cannot be found out",
    )  # fmt: skip
    house.back("prod")
    house.rounds(5, minutes=10)
    assert house.store.get(DriftReport, "prod") is not None


def test_the_report_of_a_target_that_was_removed_is_dropped(house: House) -> None:
    check(house)
    with house.store.write(house.call("TargetService/DeleteTarget").outcome()) as write:
        write.delete(house.store.get(Target, "prod"))
    house.do_chores(house.drifts)
    assert "prod" not in {row.place for row in house.rows(DriftReport)}


def test_who_may_not_get_a_key_is_not_told_of_it(house: House) -> None:
    there(house).enabled = False
    check(house)
    policy = FIRST_POLICY + '@id("w") permit(principal == Operator::"eve", action == Action::"ListDrift", resource);'
    guarded = house.elsewhere(guard=Guard(document(policy)))
    eve = house.asked("DriftService/ListDrift", operator("eve"))
    assert [one.findings for one in guarded.drifts.page(eve, (), 10).items] == [()]
    mine = house.drifts.page(house.call("DriftService/ListDrift"), (), 10).items
    assert [one.finding.drift for one in mine[0].findings] == [Drift.DISABLED]


@pytest.mark.parametrize("target", ["", "prod", "nowhere"])
def test_who_may_not_look_is_told_nothing(house: House, target: str) -> None:
    eve = house.asked("DriftService/CheckDrift", operator("eve"))
    assert ending(lambda: house.drifts.check(eve, target)) == "POLICY_DENIED"


def test_a_target_that_there_is_not_is_not_looked_at(house: House) -> None:
    assert ending(lambda: check(house, "nowhere")) == "TARGET_NOT_FOUND"


def test_every_finding_has_a_repair_in_one_line(house: House) -> None:
    there(house).enabled = False
    found = house.drifts.check(house.call("DriftService/CheckDrift"), "prod").findings[0]
    assert found.repair == (
        "enable version 1 of pay at prod, then: broker key prove pay --version 1 --target prod --remote-name pay"
    )
    for drift in Drift:
        line = repair("prod", replace(found.finding, drift=drift), 1)
        assert line
        assert line.isprintable()


def test_where_a_key_is_says_what_each_copy_is_good_for(house: House) -> None:
    def standings() -> list[Standing]:
        rows = house.imports.page(house.call("ImportService/ListImports"), "", "prod", (), 10).items
        return [one.standing for one in house.imports.whereabouts(rows)]

    assert standings() == [Standing.CURRENT]
    house.away("bao")
    house.rotate()
    house.rounds(2)
    assert standings() == [Standing.CURRENT, Standing.AHEAD]
    house.back("bao")
    house.rounds(20)
    assert standings() == [Standing.BEHIND, Standing.CURRENT]
    rewrite(house, failure="TARGET_CANNOT_DISABLE")
    assert standings()[0] is Standing.STILL_ENABLED
    for state, failure, wanted in (
        (ImportState.FAILED, "REMOTE_KEY_MISSING", Standing.MISSING),
        (ImportState.FAILED, "PROOF_FAILED", Standing.FAILED),
        (ImportState.UNKNOWN, "", Standing.UNKNOWN),
        (ImportState.GONE, "REMOTE_KEY_MISSING", Standing.GONE),
        (ImportState.DISABLED, "", Standing.DISABLED),
        (ImportState.HELD, "", Standing.HELD),
        (ImportState.DISABLING, "PROOF_FAILED", Standing.UNPROVEN),
        (ImportState.PENDING, "UNPROVEN", Standing.UNPROVEN),
        (ImportState.PENDING, "EXPORTED", Standing.PENDING),
    ):
        rewrite(house, state=state, failure=failure)
        assert standings()[0] is wanted


def test_where_a_key_is_says_what_the_last_look_has_found(house: House) -> None:
    there(house).enabled = False
    check(house)
    rows = house.imports.page(house.call("ImportService/ListImports"), "pay", "", (), 10).items
    assert [(one.row.target, one.drifts) for one in house.imports.whereabouts(rows)] == [
        ("bao", ()), ("prod", (Drift.DISABLED,)),
    ]  # fmt: skip


def test_a_look_that_is_refused_says_why(house: House) -> None:
    house.shelves["prod"].refuses["versions"] = [WrongState("TARGET_DENIED", "No.")]
    assert ending(lambda: check(house)) == "TARGET_DENIED"
