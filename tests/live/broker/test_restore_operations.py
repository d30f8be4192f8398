"""Operations that were under way in a database that was restored: they are closed, but for a sealing, which goes on."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from broker.core.errors import Unavailable
from broker.core.holding import HARMLESS, Holding
from broker.core.kinds import KeyState, KeyType, KeyUsage, OperationState, VersionState
from broker.core.model import Operation
from tests.fakes.refusals import refused
from tests.live.broker.restore_bench import ONCE, Broker, broker

__all__ = ["broker"]  # fixture
pytestmark = pytest.mark.sampled(1)
"""Each on one of the databases, as the run's seed chooses; `make soak` has both."""


def exportable(broker: Broker, name: str = "pay") -> None:
    asked = broker.call("CreateKey")
    broker.keys.create(asked, name, KeyType.EC_P256, KeyUsage.SIGN, exportable=True, labels={}, owner="")


def under_way(broker: Broker) -> list[Operation]:
    return [row for row in broker.store.page(Operation, limit=100) if not row.state.over]


def destroying(broker: Broker, name: str) -> None:
    """Its time has come, and the HSM was away when it was to be destroyed."""
    broker.create(name)
    broker.keys.schedule_destruction(broker.call("ScheduleKeyDestruction"), name, timedelta(days=1))
    broker.clock.forward(days=1)
    ((resource, work),) = broker.keys.chores()
    broker.hsm.fail = True
    with pytest.raises(Unavailable):
        work(broker.call("Chore"))
    assert resource == f"key/{name}"


def test_ST_04_what_was_under_way_is_closed_and_nobody_goes_on_with_it(broker: Broker) -> None:
    broker.create()
    broker.half_made(lambda: broker.rotate(request_id=ONCE))
    broker.half_made(broker.rotate_root)
    destroying(broker, "old")
    subjects = {row.subject for row in under_way(broker)}
    assert subjects == {"key/pay/2", "root/2", "key/old/destroy"}
    restore = broker.backup()
    broker.create("other")
    restore()
    assert under_way(broker) == []
    closed = {row.subject: row for row in broker.store.page(Operation, limit=100) if row.failure}
    assert closed.keys() == subjects
    for row in closed.values():
        assert (row.state, row.failure, row.memory) == (OperationState.UNDONE, "RESTORED", {})
        assert row.due_at > broker.clock()
        assert broker.told(f"operation/{row.subject}") == [{"state": "undone"}]
    assert broker.loop() == 0
    refused(lambda: broker.rotate(request_id=ONCE), reason="KEY_VERSION_HELD")
    assert (broker.version(2).state, broker.in_hsm(2)) == (VersionState.HELD, True)
    broker.settle(2, keep=True)
    broker.keys.cancel_destruction(broker.call("CancelKeyDestruction"), "old")
    assert broker.inventory.get(broker.call("GetKey"), "old").key.state is KeyState.DISABLED


def test_ST_04_a_sealing_that_was_under_way_goes_on(broker: Broker) -> None:
    exportable(broker)
    broker.hsm.fail = True
    with pytest.raises(Unavailable):
        broker.keys.seal(broker.call("SealKey"), "pay")
    (sealing,) = under_way(broker)
    assert {sealing.kind} <= HARMLESS <= broker.operations.plans.keys()
    restore = broker.backup()
    broker.create("other")
    restore()
    assert under_way(broker) == [sealing]
    holding = Holding(broker.store, lambda resource: replace(broker.call("AcceptRestore"), resource=resource))
    assert (holding.hold(), holding.unreadable()) == (0, 0)
    assert broker.loop() == 1
    assert (broker.key().exportable, broker.version(1).sealed) == (False, True)
