"""What brokers leave in a token to say that it is theirs, and what is asked before a key is destroyed."""

from __future__ import annotations

import os

from broker.core.errors import NotFound, WrongState
from broker.core.kinds import KeyType
from tests.contracts.hsm.keys import Whole, fresh
from tests.contracts.hsm.test_contract import device
from tests.fakes.refusals import refused

__all__ = ["device"]


def test_claims_are_kept_until_they_are_dropped_and_are_no_keys(device: Whole) -> None:
    one, two = os.urandom(100), b"two" + os.urandom(16)
    before = device.claims()
    for value in (one, two, one):
        device.add_claim(value)
    assert sorted(device.claims()) == sorted([*before, one, two])
    for _ in range(2):
        device.drop_claims([one, os.urandom(8)])
    assert sorted(device.claims()) == sorted([*before, two])
    device.drop_claims([two])
    assert device.claims() == before


def test_no_key_is_destroyed_while_the_guard_refuses(device: Whole) -> None:
    key = fresh(device, KeyType.EC_P256)
    device.guard(_refuse)
    try:
        refused(lambda: device.destroy(key), WrongState, "TOKEN_CLAIMED")
    finally:
        device.guard(_allow)
    assert device.public_key(key) == key.public_key
    device.destroy(key)
    refused(lambda: device.public_key(key), NotFound, "KEY_NOT_IN_HSM")


def _refuse() -> None:
    raise WrongState("TOKEN_CLAIMED", "It is another's.")


def _allow() -> None:
    """Whatever is to be destroyed."""
