"""Imports dead at every place: whether nobody comes next or the same request, what is at the target is what is said.

A *place* is before or after a change at the target, or before or after a commit (``tests.crash.harness``).
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.core.errors import PermissionDenied, Unavailable
from broker.core.imports.rules import NO_TERMS, TERMS_UNSETTLED
from broker.core.imports.steps import PATIENCE
from broker.core.imports.terms import written
from broker.core.kinds import ImportState
from broker.core.model import Operation, Terms
from broker.core.policy.guard import Guard
from tests.crash.scenes_imports import SCENES
from tests.fakes.calls import document


@pytest.mark.parametrize("title", sorted(SCENES))
def test_I_18_an_import_that_dies_anywhere_is_brought_to_its_end(title: str) -> None:
    SCENES[title].dies_everywhere()


@pytest.mark.parametrize("title", sorted(title for title in SCENES if "another" in title and "kept" in title))
def test_BY_05_another_key_than_was_sent_is_disabled_though_the_caller_does_not_come_back(title: str) -> None:
    house = SCENES[title].acted(0)
    house.later()
    assert (house.held().state, house.held().failure) == (ImportState.FAILED, "PROOF_FAILED")
    assert house.shelf.enabled(house.remote) == []


def test_what_another_request_has_asked_for_meanwhile_is_not_undone_by_the_background() -> None:
    died = SCENES["import on terms"].acted(9)
    assert died.fate.passed[-1] == "before terms are set"
    house = died.restarted().much_later()
    (stale,) = [row for rows in house.operations.due().values() for row in rows]
    wanted = Terms(operations=("sign",))
    house.shelf.lose("apply")
    with pytest.raises(Unavailable):
        house.bring(wanted, "")
    assert (house.held().state, house.held().failure) == (ImportState.PENDING, TERMS_UNSETTLED)
    (one,) = house.shelf.held["pay"]
    house.operations.carry_on(house.own(stale.subject), stale)
    assert one.terms == NO_TERMS
    house.later()
    assert one.terms == wanted
    house.check()


def test_I_14_what_people_have_disabled_meanwhile_is_not_enabled_by_the_background() -> None:
    house = SCENES["import on terms"].acted(9).restarted()
    row = next(one for one in house.rows(Operation) if one.kind == "import-key-on-terms")
    with house.store.write(house.call("Test").outcome()) as write:
        write.replace(row, replace(row, memory={**row.memory, "terms": written(Terms(operations=("sign",)))}))
    (one,) = house.shelf.held["pay"]
    one.enabled = False
    house.later()
    assert house.held().state is ImportState.PROVEN
    assert (one.enabled, one.terms) == (False, Terms(operations=("sign",), enabled=False))


def test_while_a_call_may_still_be_at_it_the_background_is_not() -> None:
    house = SCENES["import"].acted(5).restarted()
    house.clock.forward(seconds=PATIENCE.total_seconds() - 1)
    assert house.operations.due() == {}
    house.clock.forward(seconds=1)
    assert list(house.operations.due()) == ["bao"]


def test_S_17_what_nobody_is_permitted_any_more_is_not_sent_by_the_background() -> None:
    died = SCENES["import"].acted(3)
    assert died.fate.passed[-1] == "before an upload"
    house = died.restarted(Guard(document(version=2, text='@id("none") forbid (principal, action, resource);')))
    with pytest.raises(PermissionDenied):
        house.bring()
    house.later()
    assert (house.held().state, house.held().failure) == (ImportState.FAILED, "REMOTE_KEY_MISSING")
    assert (house.shelf.held, house.shelf.uploads) == ({}, 0)
