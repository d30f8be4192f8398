"""Root keys in a restored database: what was being made is held, and none that was followed is destroyed by itself."""

from __future__ import annotations

import pytest

from broker.core.holding import held_work
from broker.core.kinds import RootKeyState
from broker.core.model import RootKey
from tests.fakes.refusals import refused
from tests.live.broker.restore_bench import FIELDS, ONCE, Broker, broker

__all__ = ["broker"]  # fixture
pytestmark = pytest.mark.sampled(1)
"""Each on one of the databases, as the run's seed chooses; `make soak` has both."""


def test_ST_04_a_root_key_that_was_being_made_is_not_used_before_it_is_kept(broker: Broker) -> None:
    broker.put()
    broker.half_made(broker.rotate_root)
    restore = broker.backup()
    broker.create("other")
    restore()
    assert broker.loop() == 0
    held = broker.root(2)
    assert (held.state, broker.root_in_hsm(held), broker.read()) == (RootKeyState.HELD, True, FIELDS)
    assert [one.version for one in broker.secrets.roots.frozen()] == [2]
    broker.settle_root(2, keep=True, validate_only=True)
    assert broker.root(2).state is RootKeyState.HELD
    broker.settle_root(2, keep=True)
    kept = broker.root(2)
    assert (kept.state, kept.created_at) == (RootKeyState.ENABLED, broker.clock())  # as if it had been made now
    # What hangs on the first one follows, the kept one gets its check value, and the first, which nobody holds, goes.
    assert broker.loop() == 3
    assert (broker.store.get(RootKey, 1), broker.read()) == (None, FIELDS)


def test_ST_04_a_held_root_key_is_discarded_and_another_one_can_be_made(broker: Broker) -> None:
    broker.put()
    broker.half_made(broker.rotate_root)
    restore = broker.backup()
    broker.create("other")
    restore()
    held = broker.root(2)
    assert broker.rotate_root() == 3
    broker.settle_root(2, keep=False, validate_only=True)
    assert broker.root_in_hsm(held)
    for _ in range(2):
        broker.settle_root(2, keep=False, request_id=ONCE)
    assert not broker.root_in_hsm(held)
    refused(lambda: broker.settle_root(2, keep=False), reason="ROOT_KEY_NOT_FOUND")
    assert broker.read() == FIELDS


def test_ST_04_a_root_key_that_was_followed_is_not_destroyed_by_itself(broker: Broker) -> None:
    broker.put()
    broker.rotate_root()
    restore = broker.backup()
    broker.create("other")
    restore()
    first = broker.root(1)
    assert (first.state, broker.root(2).state) == (RootKeyState.KEPT, RootKeyState.ENABLED)
    assert broker.read() == FIELDS  # it still opens what hangs on it
    assert broker.loop() == 1  # the secret is wrapped anew; nothing is destroyed
    assert broker.root_in_hsm(first)
    assert held_work(broker.store) == 0
    broker.settle_root(1, keep=True)
    assert (broker.root(1).state, broker.loop()) == (RootKeyState.KEPT, 0)
    broker.settle_root(1, keep=False)
    assert broker.loop() == 1
    assert not broker.root_in_hsm(first)
    assert broker.read() == FIELDS


def test_ST_04_a_held_root_key_that_others_have_followed_is_kept_and_not_destroyed_at_once(broker: Broker) -> None:
    broker.half_made(broker.rotate_root)
    restore = broker.backup()
    broker.create("other")
    restore()
    assert broker.rotate_root() == 3
    broker.settle_root(2, keep=True)
    assert broker.root(2).state is RootKeyState.KEPT
    broker.loop()
    assert broker.root_in_hsm(broker.root(2))
