"""What a process knows of each row, and that it takes no good row for one that was put back."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from broker.core.errors import WrongState
from broker.core.model import Record, TrustRule
from broker.core.records import key_of
from broker.store.floors import Floors
from broker.store.marks import Changed
from broker.store.rows import rank
from tests.contracts.store.samples import T0, rule

OLD, LATER = replace(rule(), created_at=T0), replace(rule(), created_at=T0 + timedelta(seconds=1))


def change(record: Any, *, before: bool = True, after: bool = True) -> Changed:
    macs = b"b" if before else None, b"a" if after else None
    return Changed(type(record), key_of(record), record.revision, rank(record), *macs)


def passes(floors: Floors, record: Record) -> bool:
    return floors.admits(type(record), key_of(record), rank(record))


def added(record: Record) -> Changed:
    return change(record, before=False)


def deleted(record: Record) -> Changed:
    return change(record, after=False)


def test_a_row_that_another_process_made_again_is_good() -> None:
    here = Floors(alone=False)
    here.changed([added(OLD)])
    here.changed([deleted(OLD)])
    assert here.deleted(TrustRule, key_of(OLD))
    assert passes(here, LATER)
    assert not passes(here, OLD)


def test_a_row_that_was_made_again_here_is_good_though_the_clock_was_set_back() -> None:
    here = Floors(alone=True)
    for one in (added(LATER), deleted(LATER), added(OLD)):
        here.changed([one])
    assert passes(here, OLD)


def test_who_was_the_second_to_change_a_row_may_be_the_first_to_say_so() -> None:
    here, again = Floors(alone=True), replace(OLD, revision=2)
    here.changed([deleted(again)])
    here.changed([change(again)])
    here.changed([added(OLD)])
    here.check_absent(TrustRule, key_of(OLD))
    assert not passes(here, again)
    here.changed([added(LATER)])
    here.changed([deleted(again)])
    assert passes(here, LATER)


def test_a_row_that_was_removed_by_somebody_and_made_again_may_be_deleted() -> None:
    here = Floors(alone=False)
    here.removed("trust_rules/" + OLD.name)
    with pytest.raises(WrongState):
        here.check_absent(TrustRule, key_of(OLD))
    here.changed([added(OLD)])
    here.changed([deleted(OLD)])
    here.check_absent(TrustRule, key_of(OLD))
