"""What is kept on record of copies that are gone: a bounded part, and never less than what may be there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.core.imports.rules import MAX_GONE
from broker.core.kinds import ImportState
from broker.core.model import Import
from tests.unit.rotations.bench import House


@pytest.fixture
def house() -> House:
    made = House()
    made.furnish()
    return made


def put(house: House, state: ImportState, *rows: tuple[int, str]) -> None:
    """Versions under these names."""
    one = house.store.get(Import, "pay", 1, "prod", "pay")
    assert one is not None
    with house.store.write(house.call("ImportService/ImportKey").outcome()) as write:
        write.add(*(replace(one, remote_name=name, version=number, state=state, revision=1) for number, name in rows))


def bring(house: House, name: str) -> None:
    house.imports.import_key(house.call("ImportService/ImportKey"), "pay", 1, "prod", name)


def on_record(house: House, state: ImportState = ImportState.GONE) -> list[tuple[int, str]]:
    rows = [row for row in house.rows(Import) if row.target == "prod" and row.state is state]
    return [(row.version, row.remote_name) for row in rows]


def forget_pay(house: House) -> None:
    """So that the key can go there under another name."""
    row = house.store.get(Import, "pay", 1, "prod", "pay")
    with house.store.write(house.call("ImportService/ProveImport").outcome()) as write:
        write.replace(row, replace(row, state=ImportState.FAILED))


def test_K06_of_copies_that_are_gone_the_oldest_are_forgotten_and_of_all_others_none(house: House) -> None:
    put(house, ImportState.GONE, *((1000 + number, f"g{number:03}") for number in range(MAX_GONE + 5)))
    put(house, ImportState.FAILED, *((1, f"f{number:03}") for number in range(20)))
    forget_pay(house)
    bring(house, "new")
    assert sorted(on_record(house)) == [(1000 + number, f"g{number:03}") for number in range(5, MAX_GONE + 5)]
    assert len(on_record(house, ImportState.FAILED)) == 21
    assert on_record(house, ImportState.PROVEN) == [(1, "new")]


def test_K06_that_the_last_version_under_a_name_is_gone_is_kept_while_a_former_one_may_be_there(house: House) -> None:
    put(house, ImportState.DISABLED, (12, "held"))
    put(house, ImportState.GONE, (11, "held"), (13, "held"))
    put(house, ImportState.GONE, *((1000 + number, f"g{number:03}") for number in range(MAX_GONE + 1)))
    forget_pay(house)
    bring(house, "held")
    assert (13, "held") in on_record(house)
    assert (11, "held") not in on_record(house)
    assert len(on_record(house)) <= MAX_GONE + 1


def test_as_many_as_are_kept_are_all_kept(house: House) -> None:
    put(house, ImportState.GONE, *((1, f"g{number:03}") for number in range(MAX_GONE)))
    forget_pay(house)
    bring(house, "new")
    assert len(on_record(house)) == MAX_GONE
