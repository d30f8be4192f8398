"""The life of a key at two targets against a small reference model: phases, the primary version, what is where."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import Phase as Stage
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from broker.core.keys.phases import MOVES
from broker.core.kinds import ImportState, Phase
from broker.core.model import Import, KeyMove, Operation
from tests.fakes.refusals import ending
from tests.unit.rotations.bench import TARGETS, House

PRE, ACTIVE, OLD, LEAKED = Phase.PRE_ACTIVE, Phase.ACTIVE, Phase.DEACTIVATED, Phase.COMPROMISED
any_version = st.integers(1, 8)
graces = st.sampled_from([timedelta(0), timedelta(hours=1), timedelta(hours=24)])


@dataclass
class Ending:
    """What is retired once its time has come, which the broker says."""

    former: list[int]
    retire_at: datetime


class Machine(RuleBasedStateMachine):
    """Each rule does the same to the broker and to the model."""

    steps: ClassVar[int] = 0

    @initialize()
    def begin(self) -> None:
        self.house = House()
        self.house.furnish()
        self.phases = {1: ACTIVE}
        self.primary = 1
        self.enabled = True
        self.turn = 0  # the version of a rotation that goes on
        self.endings: list[Ending] = []
        self.away: set[str] = set()

    # ---- what people do ------------------------------------------------------------------------------------------

    @rule()
    def rotate_here(self) -> None:
        made = ending(lambda: self.house.keys.rotate(self.house.call("KeyService/RotateKey"), "pay"))
        if self.turn and self.phases[self.turn] in {PRE, ACTIVE}:
            assert made == "KEY_ROTATION_RUNNING"
            return
        assert made == ("ok" if self.enabled else "KEY_STATE")
        if made == "ok":
            self.primary = self._next(ACTIVE)

    @rule()
    def prepare(self) -> None:
        made = ending(lambda: self.house.rotations.prepare(self.house.call("KeyService/PrepareKeyVersion"), "pay"))
        assert made == ("ok" if self.enabled else "KEY_STATE")
        if made == "ok":
            self._next(PRE)

    @rule(number=any_version)
    def activate(self, number: int) -> None:
        phase, asked = self.phases.get(number), self.house.call("KeyService/ActivateKeyVersion")
        told = ending(lambda: self.house.rotations.activate(asked, "pay", number))
        if phase is None:
            assert told == "KEY_VERSION_NOT_FOUND"
        elif phase is PRE or (phase is ACTIVE and number == self.primary):
            assert told == "ok"
            self.phases[number], self.primary = ACTIVE, max(self.primary, number)
        else:
            assert told == "KEY_VERSION_PHASE"

    @rule(number=any_version)
    def retire(self, number: int) -> None:
        phase, asked = self.phases.get(number), self.house.call("KeyService/RetireKeyVersion")
        told = ending(lambda: self.house.rotations.retire(asked, "pay", number))
        if phase is None:
            assert told == "KEY_VERSION_NOT_FOUND"
        elif number == self.primary:
            assert told == "KEY_VERSION_PRIMARY"
        elif phase is LEAKED:
            assert told == "KEY_VERSION_PHASE"
        else:
            assert told == "ok"
            self.phases[number] = OLD

    @rule(number=any_version)
    def compromise(self, number: int) -> None:
        asked = self.house.call("KeyService/CompromiseKeyVersion")
        told = ending(lambda: self.house.rotations.compromise(asked, "pay", number, "leaked"))
        if number not in self.phases:
            assert told == "KEY_VERSION_NOT_FOUND"
        elif self.phases[number] is LEAKED:
            assert told == "KEY_VERSION_PHASE"
        else:
            assert told == "ok"
            self.phases[number] = LEAKED

    @rule()
    def disable(self) -> None:
        told = ending(lambda: self.house.keys.disable(self.house.call("KeyService/DisableKey"), "pay"))
        assert told == "ok"
        self.enabled = False

    @rule()
    def enable(self) -> None:
        told = ending(lambda: self.house.keys.enable(self.house.call("KeyService/EnableKey"), "pay"))
        assert told == "ok"
        self.enabled = True

    @rule(grace=graces)
    def rotate(self, grace: timedelta) -> None:
        told = ending(lambda: self.house.rotate(grace))
        if self.turn:
            assert told == "KEY_ROTATION_RUNNING"
        elif not self.enabled:
            assert told == "KEY_STATE"
        else:
            assert told == "ok"
            self.turn = self._next(PRE)

    @precondition(lambda self: not self.away)
    @rule(name=st.sampled_from(TARGETS))
    def goes_away(self, name: str) -> None:
        self.house.away(name)
        self.away = {name}

    @rule()
    def come_back(self) -> None:
        for name in self.away:
            self.house.back(name)
        self.away = set()

    @rule(hours=st.sampled_from([0.1, 2, 30]))
    def time_passes(self, hours: float) -> None:
        self.house.clock.forward(hours=hours)

    # ---- what is true after each ---------------------------------------------------------------------------------

    def _next(self, phase: Phase) -> int:
        number = max(self.phases) + 1
        self.phases[number] = phase
        return number

    def _turned(self) -> None:
        """What the broker does by itself, in the model."""
        given_up = self.turn > 0 and self.phases[self.turn] in {OLD, LEAKED}
        waits = bool(self.away) and not (given_up and not self._used_there())
        if self.turn and not waits and (self.enabled or given_up):  # else its copies have to wait
            self._in_force(self.turn)
            self.turn = 0
        now = self.house.clock()
        for over in [one for one in self.endings if one.retire_at <= now]:
            self.endings.remove(over)
            for number in over.former:
                if self.phases[number] in {PRE, ACTIVE}:
                    self.phases[number] = OLD

    def _used_there(self) -> bool:
        """Whether a target that is away may have a usable copy of what the rotation brings."""
        rows = [row for row in self.house.rows(Import) if row.version == self.turn and row.target in self.away]
        return any(row.may_be_there and row.state is not ImportState.DISABLED for row in rows)

    def _in_force(self, number: int) -> None:
        if self.phases[number] in {OLD, LEAKED}:
            return
        self.phases[number], self.primary = ACTIVE, max(self.primary, number)
        row = self.house.store.last(Operation, f"key/pay/{number}/former")
        retire_at = self.house.clock() if row.state.over else datetime.fromisoformat(row.memory["retire_at"])
        self.endings.append(Ending([one for one in self.phases if one < number], retire_at))

    @invariant()
    def the_same(self) -> None:
        type(self).steps += 1
        self.house.rounds(14, seconds=31)
        self._turned()
        if not self.turn and not self.endings:  # nothing waits for a time any more: the targets have theirs
            self.house.rounds(6, seconds=31)
        assert self.house.phases() == self.phases
        assert self.house.key().primary == self.primary
        self._uses()
        self._moves()
        self._copies()

    def _uses(self) -> None:
        told = ending(self.house.signs)
        if not self.enabled:
            assert told == "KEY_STATE"
        elif self.phases[self.primary] is ACTIVE:
            assert (told, self.house.signs()) == ("ok", self.primary)
        else:
            assert told == "KEY_VERSION_PHASE"

    def _moves(self) -> None:
        """The record tells the whole life of each version, and no step of it is one that there is not."""
        for number, phase in self.phases.items():
            told = [row.phase for row in self.house.rows(KeyMove) if row.version == number]
            assert told[-1] is phase
            assert all(after in MOVES[before] for before, after in pairwise(told))

    def _copies(self) -> None:
        live = [row for row in self.house.rows(Operation) if not row.state.over]
        for row in self.house.rows(Import):
            held = self.house.shelves[row.target].held["pay"]
            if row.state in {ImportState.PROVEN, ImportState.DISABLED}:
                assert held[int(row.remote_version) - 1].enabled == (row.state is ImportState.PROVEN)
            if self.phases[row.version] is LEAKED and not self.away:
                assert row.state is not ImportState.PROVEN, live
        assert self.turn or self.endings or self.away or not live


def run(examples: int, length: int) -> int:
    """Run the machine; how many steps that were."""
    Machine.steps = 0
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=length,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            phases=[Stage.generate],  # shortening a failure takes minutes
        ),
    )
    return Machine.steps


def test_the_life_of_a_key_is_that_of_the_model() -> None:
    """As chance has it; the long form is for ``make soak``."""
    assert run(8, 25) >= 60


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_life_of_a_key_is_that_of_the_model_for_long() -> None:
    assert run(1000, 80) >= 20_000
