"""Imports that were under way when the database was restored: nothing more is sent before an operator confirms them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.core.errors import Unavailable, WrongState
from broker.core.holding import Holding
from broker.core.imports.places import ARRIVAL_GRACE
from broker.core.kinds import ImportState
from broker.core.model import Import, Key
from tests.contracts.store.samples import read_journal
from tests.fakes.refusals import refused
from tests.live.imports.fault_proxy import LOSE_ANSWER, LOSE_REQUEST, PASS, FaultProxy
from tests.live.imports.test_handover import Carrier, bench, hopped, proxy

__all__ = ["bench", "hopped", "proxy"]  # fixtures


def hold(bench: Carrier) -> int:
    """As `accept-restore` does it, long after whatever was on its way has arrived."""
    bench.clock.forward(seconds=2 * ARRIVAL_GRACE.total_seconds())
    return Holding(bench.store, lambda resource: replace(bench.call("AcceptRestore"), resource=resource)).hold()


def held(bench: Carrier, key: Key) -> Import:
    row = bench.row(key)
    assert row is not None
    assert row.state is ImportState.HELD
    return row


def cut_short(bench: Carrier, proxy: FaultProxy, fate: int) -> Key:
    """A key whose upload was lost, or whose answer was and everything after it."""
    key = bench.key()
    proxy.rule = lambda _method, path: PASS if path.endswith("wrapping_key") else fate
    refused(lambda: bench.run(key), Unavailable, "TARGET_UNREACHABLE")
    proxy.rule = lambda _method, _path: PASS
    return key


def test_ST_04_a_held_import_is_not_gone_on_with_by_a_repetition(hopped: Carrier, proxy: FaultProxy) -> None:
    key = cut_short(hopped, proxy, LOSE_REQUEST)
    assert (hold(hopped), hold(hopped)) == (1, 0)
    row = held(hopped, key)
    asked = len(proxy.seen)
    for again in (
        lambda: hopped.run(key),
        lambda: hopped.export(key),
        lambda: hopped.imports.prove(hopped.call("ProveImport"), key.name, 0, "bao"),
    ):
        refused(again, WrongState, "IMPORT_HELD")
    assert (hopped.row(key), len(proxy.seen), hopped.arrived(key)) == (row, asked, False)
    refused(lambda: hopped.targets.delete(hopped.call("DeleteTarget"), "bao"), WrongState, "TARGET_IN_USE")


def test_ST_04_a_held_import_that_arrived_is_confirmed(hopped: Carrier, proxy: FaultProxy) -> None:
    key = cut_short(hopped, proxy, LOSE_ANSWER)
    hold(hopped)
    hopped.confirm(key, dry=True)
    held(hopped, key)
    assert hopped.confirm(key).state is ImportState.PROVEN
    assert hopped.mount.versions(key.name) == ["1"]
    assert hopped.run(key).state is ImportState.PROVEN  # as ever from now on


def test_ST_04_a_held_import_that_never_arrived_fails_when_it_is_confirmed(hopped: Carrier, proxy: FaultProxy) -> None:
    key = cut_short(hopped, proxy, LOSE_REQUEST)
    hold(hopped)
    refused(lambda: hopped.confirm(key, dry=True), WrongState, "REMOTE_KEY_MISSING")
    held(hopped, key)
    refused(lambda: hopped.confirm(key), WrongState, "REMOTE_KEY_MISSING")
    row = hopped.row(key)
    assert row is not None
    assert row.state is ImportState.FAILED
    assert hopped.run(key).state is ImportState.PROVEN


def test_ST_04_a_held_export_is_confirmed_once_it_was_carried(bench: Carrier) -> None:
    key = bench.key()
    file = bench.export(key).transfer_file
    assert hold(bench) == 1
    refused(lambda: bench.export(key), WrongState, "IMPORT_HELD")
    bench.carry(key, file)
    assert bench.confirm(key).state is ImportState.PROVEN
    told = [one for chain in read_journal(bench.journal).values() for one in chain if one["kind"] == "entry"]
    (entry,) = [
        one for one in told if one["resource"] == f"key/{key.name},target/bao" and "AcceptRestore" in one["rpc"]
    ]
    assert (entry["facts"]["state"], entry["facts"]["version"], entry["facts"]["target"]) == ("held", 1, "bao")


@pytest.mark.parametrize("state", [ImportState.PROVEN, ImportState.FAILED])
def test_what_is_over_is_not_held(bench: Carrier, state: ImportState) -> None:
    key = bench.key()
    bench.run(key)
    row = bench.row(key)
    assert row is not None
    with bench.store.write(bench.call("Change").outcome()) as write:
        write.replace(row, replace(row, state=state))
    assert hold(bench) == 0
