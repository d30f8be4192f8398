"""Keys that are rotated by themselves: when, in whose name, and what becomes of it when something is in the way."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest

from broker.core.call import Call
from broker.core.errors import BrokerError, InvalidRequest, NotFound, PermissionDenied, WrongState
from broker.core.holding import Holding, held_work
from broker.core.kinds import KeyState, KeyType, KeyUsage, OperatorState, Phase, ScheduleState
from broker.core.model import Key, Operator
from broker.core.policy.cedar import FIRST_POLICY
from broker.core.policy.guard import Guard
from broker.core.schedule import KeySchedule
from broker.core.schedules.lifecycle import BATCH, Late, Wish
from broker.zones import time_zone
from tests.fakes.calls import document, operator
from tests.fakes.refusals import ending, refused
from tests.unit.rotations.bench import REQUEST, TARGETS, House

DAYS = timedelta(days=1)
EVERY = Wish(every=90 * DAYS)


class Home(House):
    """A house whose background looks after schedules too."""

    def set(self, wish: Wish | None = EVERY, name: str = "pay", **how: Any) -> KeySchedule | None:
        call = replace(self.call("KeyService/SetKeySchedule", how.pop("request_id", "")), **how)
        return self.schedules.set(call, name, wish)[1]

    def make(self, name: str) -> None:
        asked = self.call("KeyService/CreateKey")
        self.keys.create(asked, name, KeyType.EC_P256, KeyUsage.SIGN, exportable=True, labels={}, owner="")

    def look(self) -> list[str]:
        """A round of the background, and how each piece of it ended."""
        return [ending(partial(work, self.own(about))) for about, work in self.schedules.chores()]

    def goes_on(self, **forward: float) -> list[str]:
        self.clock.forward(**forward)
        ended = self.look()
        self.rounds(8)
        return ended

    def schedule(self, name: str = "pay") -> KeySchedule:
        found: KeySchedule | None = self.store.get(KeySchedule, name)
        assert found is not None
        return found

    def late(self) -> list[Late]:
        return list(self.schedules.late())

    def change(self, *rows: tuple[Any, Any]) -> None:
        with self.store.write(self.call("-/Test").outcome()) as write:
            for old, new in rows:
                write.replace(old, new)

    def entries(self, rpc: str) -> list[Any]:
        return [one for one in self.ground.store.entries if one.rpc == rpc]


@pytest.fixture
def home() -> Home:
    made = Home()
    made.furnish()
    return made


def test_a_key_that_is_due_is_rotated_everywhere_as_by_hand(home: Home) -> None:
    made = home.clock()
    home.set()
    assert home.goes_on(days=89, hours=23) == []
    assert home.key().latest == 1
    assert home.goes_on(hours=2) == ["ok"]
    assert (home.signs(), home.key().latest) == (2, 2)
    assert {place for place in home.copies() if place[1] == 2} == {(name, 2) for name in TARGETS}
    home.goes_on(minutes=6)
    assert home.schedule().version == 2
    assert home.schedule().next_at - made >= 180 * DAYS
    home.rounds(2, hours=12)
    home.rounds(4)
    assert home.phases() == {1: Phase.DEACTIVATED, 2: Phase.ACTIVE}
    home.goes_on(days=90)
    assert home.signs() == 3


def test_a_key_that_may_not_be_imported_without_approvals_by_now_is_held_up() -> None:
    guard = Guard(document(FIRST_POLICY))
    home = Home(guard=guard)
    home.furnish()
    home.set()
    guard.approvals = {"ImportKey": 1}
    assert home.goes_on(days=91) == ["APPROVAL_REQUIRED"]
    assert home.key().latest == 1
    guard.approvals = {}
    assert home.goes_on(hours=2) == ["ok"]
    assert home.signs() == 2


def test_the_audit_says_that_the_schedule_asked_and_who_had_set_it(home: Home) -> None:
    home.set()
    home.goes_on(days=91)
    begun = home.entries("KeyService/RotateKey")[0]
    assert (begun.principal, begun.authn) == ("operator/alice", "schedule")
    assert begun.facts["scheduled_by"] == "operator/alice"
    assert (begun.resource, begun.decision) == ("key/pay", "allow")
    assert home.moves()[-1] == (2, "active", "operator/alice", "rotated")


def test_a_key_that_is_too_old_already_is_due_at_once_and_one_in_a_blackout_behind_it(home: Home) -> None:
    home.clock.time = datetime.fromisoformat("2027-01-06T10:00:00+00:00")
    at_once = home.set()
    assert at_once is not None
    assert at_once.next_at == home.clock()
    later = home.set(replace(EVERY, blackouts=("Mon-Fri  08:00-18:00 Europe/Berlin",)))
    assert later is not None
    assert (later.next_at.hour, later.blackouts) == (17, ("Mon-Fri 08:00-18:00 Europe/Berlin",))
    assert home.goes_on(hours=6, minutes=59) == []
    assert home.goes_on(minutes=2) == ["ok"]
    assert home.signs() == 2


def test_in_a_blackout_nothing_begins_though_the_broker_was_away_when_it_was_due(home: Home) -> None:
    home.set(replace(EVERY, blackouts=("00:00-12:00",)))
    home.clock.time = (home.schedule().next_at + 2 * DAYS).replace(hour=9, minute=0)
    assert home.look() == ["ok"]
    assert home.key().latest == 1
    assert home.goes_on(hours=4) == ["ok"]
    assert home.signs() == 2


def test_jitter_is_the_same_at_each_reckoning_and_not_the_same_for_all(home: Home) -> None:
    wish = replace(EVERY, jitter=6 * timedelta(hours=1))
    times = set[datetime]()
    for number in range(8):
        home.make(f"k{number}")
        first = home.set(wish, f"k{number}")
        again = home.set(wish, f"k{number}")
        assert first is not None
        assert again is not None
        assert first.next_at == again.next_at
        assert timedelta(0) <= first.next_at - home.clock() - 90 * DAYS <= timedelta(hours=6)
        times.add(first.next_at)
    assert len(times) > 4


def test_however_many_are_due_at_once_all_are_seen_to_in_one_round(home: Home) -> None:
    home.set()
    with home.store.write(home.call("-/Test").outcome()) as write:
        write.add(*(replace(home.schedule(), key=f"gone-{number}") for number in range(2 * BATCH)))
    home.clock.forward(days=91)
    assert home.look() == ["ok"] * (2 * BATCH + 1)
    assert [row.key for row in home.rows(KeySchedule)] == ["pay"], "of a key that there is not any more"
    home.rounds(3)
    assert home.key().primary == 2


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        (Wish(every=timedelta(0)), "PERIOD_OUT_OF_RANGE"),
        (Wish(every=timedelta(minutes=59)), "PERIOD_OUT_OF_RANGE"),
        (Wish(every=1000 * 365 * DAYS), "PERIOD_OUT_OF_RANGE"),
        (Wish(every=-DAYS), "PERIOD_OUT_OF_RANGE"),
        (replace(EVERY, jitter=46 * DAYS), "SCHEDULE_INVALID"),
        (replace(EVERY, grace=46 * DAYS), "SCHEDULE_INVALID"),
        (replace(EVERY, warn=91 * DAYS), "SCHEDULE_INVALID"),
        (replace(EVERY, blackouts=("00:00-24:00",)), "BLACKOUT_TOTAL"),
        (replace(EVERY, blackouts=("soon",)), "BLACKOUT_INVALID"),
        (replace(EVERY, blackouts=("08:00-18:00 Europe/Atlantis",)), "ZONE_UNKNOWN"),
    ],
)
def test_what_makes_no_schedule_is_refused_and_changes_nothing(home: Home, wish: Wish, reason: str) -> None:
    refused(lambda: home.set(wish), reason=reason)
    assert home.store.get(KeySchedule, "pay") is None


def test_a_dry_run_tells_when_and_changes_nothing(home: Home) -> None:
    would = home.set(validate_only=True)
    assert would is not None
    assert would.next_at == home.clock() + 90 * DAYS
    assert home.store.get(KeySchedule, "pay") is None
    refused(lambda: home.set(Wish(every=timedelta(0)), validate_only=True), InvalidRequest)


def test_off_ends_it_twice_is_the_same_as_once_and_a_dry_run_ends_nothing(home: Home) -> None:
    home.set()
    home.set(None, validate_only=True)
    assert home.schedule().state is ScheduleState.ACTIVE
    home.set(None)
    home.set(None)
    assert home.store.get(KeySchedule, "pay") is None
    assert home.goes_on(days=100) == []


def test_the_same_request_is_carried_out_once(home: Home) -> None:
    home.set(request_id=REQUEST)
    revision = home.schedule().revision
    assert home.set(request_id=REQUEST) == home.schedule()
    assert home.schedule().revision == revision


def test_a_rotation_that_runs_already_is_waited_for(home: Home) -> None:
    home.set()
    home.clock.forward(days=90)
    home.away("prod")
    home.rotate()
    assert home.look() == ["ok"]
    assert (home.key().latest, home.schedule().failure) == (2, "")
    assert not [one for one in home.ground.store.entries if one.reason == "KEY_ROTATION_RUNNING"]
    home.back("prod")
    home.rounds(20, seconds=10)
    assert home.goes_on(minutes=6) == ["ok"]
    assert (home.key().latest, home.schedule().version) == (2, 2)


def test_who_rotates_by_hand_moves_the_next_time_by_a_whole_period(home: Home) -> None:
    home.set()
    home.clock.forward(days=80)
    home.rotate()
    home.rounds(4)
    assert home.goes_on(days=10) == ["ok"]
    assert home.key().latest == 2
    assert home.schedule().next_at > home.clock() + 79 * DAYS


def test_a_key_that_is_disabled_rests_and_is_rotated_once_it_is_enabled(home: Home) -> None:
    home.set()
    home.keys.disable(home.call("KeyService/DisableKey"), "pay")
    assert home.goes_on(days=91) == ["ok"]
    assert (home.key().latest, home.schedule().failure, home.late()) == (1, "KEY_STATE", [])
    home.keys.enable(home.call("KeyService/EnableKey"), "pay")
    assert [one.standing.overdue for one in home.late()] == [True]
    home.goes_on(hours=1)
    assert home.signs() == 2


def test_a_key_that_is_destroyed_has_no_schedule_any_more(home: Home) -> None:
    home.make("old")
    home.set(name="old")
    home.keys.schedule_destruction(home.call("KeyService/ScheduleKeyDestruction"), "old", DAYS)
    home.clock.forward(days=2)
    home.do_chores(home.keys)
    home.rounds(3)
    assert home.store.get(Key, "old").state is KeyState.DESTROYED
    home.goes_on(days=90)
    assert home.store.get(KeySchedule, "old") is None
    refused(lambda: home.set(name="old"), WrongState, "KEY_STATE")


def test_a_key_to_be_destroyed_gets_none(home: Home) -> None:
    home.keys.schedule_destruction(home.call("KeyService/ScheduleKeyDestruction"), "pay", None)
    refused(home.set, WrongState, "KEY_STATE")


def test_a_version_that_is_compromised_meanwhile_is_replaced_at_its_time_at_the_latest(home: Home) -> None:
    home.set()
    home.rotations.compromise(home.call("KeyService/CompromiseKeyVersion"), "pay", 1, "leaked")
    home.goes_on(days=91)
    assert (home.signs(), home.phases()[1]) == (2, Phase.COMPROMISED)


def test_AZ_14_who_set_it_and_was_removed_since_rotates_nothing_and_it_is_overdue(home: Home) -> None:
    home.set()
    alice = home.store.get(Operator, "alice")
    home.change((alice, replace(alice, state=OperatorState.REMOVED)))
    assert home.goes_on(days=91) == ["OPERATOR_NOT_FOUND"]
    assert home.key().latest == 1
    (late,) = home.late()
    assert (late.key, late.standing.overdue, late.failure) == ("pay", True, "OPERATOR_NOT_FOUND")
    assert home.look() == [], "it is not tried in each round"


def test_AZ_14_who_has_lost_the_right_since_rotates_nothing_and_that_is_recorded_once(home: Home) -> None:
    home.set()
    alice = home.store.get(Operator, "alice")
    home.change((alice, replace(alice, groups=("auditors",))))
    assert home.goes_on(days=91) == ["POLICY_DENIED"]
    assert home.goes_on(hours=1) == ["POLICY_DENIED"]
    assert home.key().latest == 1
    denied = [one for one in home.entries("KeyService/RotateKey") if one.reason == "POLICY_DENIED"]
    assert [(one.principal, one.decision) for one in denied] == [("operator/alice", "deny")]


def test_who_may_not_rotate_the_key_sets_no_schedule(home: Home) -> None:
    only = '@id("pat") permit (principal == Operator::"pat", action == Action::"SetKeySchedule", resource);'
    strict = Home(home.ground, Guard(document(FIRST_POLICY + only)))
    asked = strict.asked("KeyService/SetKeySchedule", operator("pat"))
    error = refused(lambda: strict.schedules.set(asked, "pay", EVERY), PermissionDenied, "POLICY_DENIED")
    assert error.metadata["action"] == "RotateKey"
    assert home.store.get(KeySchedule, "pay") is None


def test_who_may_not_set_one_learns_not_even_whether_there_is_such_a_key(home: Home) -> None:
    eve = operator("eve", "nothing")

    def asked(name: str) -> BrokerError:
        return refused(lambda: home.schedules.set(home.asked("KeyService/SetKeySchedule", eve), name, EVERY))

    assert asked("pay").reason == asked("none").reason == "POLICY_DENIED"
    refused(lambda: home.set(name="none"), NotFound, "KEY_NOT_FOUND")


def test_a_sealed_key_that_is_elsewhere_gets_no_schedule_that_could_not_be_kept(home: Home) -> None:
    home.keys.seal(home.call("KeyService/SealKey"), "pay")
    refused(home.set, WrongState, "KEY_NOT_EXPORTABLE")


def test_FT_23_a_clock_that_steps_back_rotates_nothing_twice(home: Home) -> None:
    home.set()
    home.goes_on(days=91)
    assert home.key().latest == 2
    home.clock.forward(days=-91)
    assert home.goes_on(minutes=30) == []
    assert home.key().latest == 2


def test_FT_23_what_was_reckoned_while_the_clock_was_years_ahead_is_reckoned_anew(home: Home) -> None:
    home.clock.forward(days=3000)
    home.make("other")
    home.set(name="other")
    home.clock.forward(days=-3000)
    assert home.schedule("other").next_at > home.clock() + 3000 * DAYS
    pieces = list(home.schedules.stepped())
    for about, work in pieces:
        work(home.own(about))
    assert home.schedule("other").next_at == home.clock() + 90 * DAYS
    assert list(home.schedules.stepped()) == []


def test_a_zone_that_the_host_does_not_know_any_more_rotates_nothing_and_that_is_told(home: Home) -> None:
    home.set(replace(EVERY, blackouts=("08:00-18:00 Europe/Berlin",)))
    home.restart(zone=lambda _: None)
    home.clock.forward(days=91)
    assert home.look() == ["ZONE_UNKNOWN"]
    assert home.look() == [], "it is not tried in each round"
    assert (home.key().latest, [one.failure for one in home.late()]) == (1, ["ZONE_UNKNOWN"])
    home.restart(zone=time_zone)
    home.goes_on(hours=25)
    assert home.signs() == 2


def test_after_a_restore_it_is_held_until_it_is_set_again(home: Home) -> None:
    home.set()
    Holding(home.store, home.own).hold()
    assert (home.schedule().state, held_work(home.store)) == (ScheduleState.HELD, 1)
    assert home.goes_on(days=91) == []
    assert home.key().latest == 1
    assert [one.standing.overdue for one in home.late()] == [True]
    home.set()
    assert home.goes_on(seconds=1) == ["ok"]
    assert home.signs() == 2


def test_a_former_leader_rotates_nothing(home: Home) -> None:
    home.set()
    home.clock.forward(days=91)
    store: Any = home.ground.store
    store.fence = 2
    ((about, work),) = home.schedules.chores()

    def former() -> Call:
        return replace(home.own(about), fence=1)

    refused(lambda: work(former()), WrongState, "LEADERSHIP_LOST")
    assert home.key().latest == 1


def test_the_warning_comes_before_and_overdue_after_a_quarter_of_an_hour(home: Home) -> None:
    home.set(replace(EVERY, warn=14 * DAYS))

    def told() -> list[tuple[bool, bool]]:
        return [(one.standing.soon, one.standing.overdue) for one in home.late()]

    home.clock.forward(days=75)
    assert told() == []
    home.clock.forward(days=2)
    assert told() == [(True, False)]
    home.clock.forward(days=13, minutes=10)
    assert told() == [(True, False)]
    home.clock.forward(minutes=10)
    assert told() == [(False, True)]
