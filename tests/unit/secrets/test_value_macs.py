"""A repeated PutSecret with other values is refused, also once its version is destroyed; and nobody can guess by it."""

from __future__ import annotations

import hashlib
import hmac
import itertools
from dataclasses import replace
from typing import Any

import pytest

from broker.core.errors import AlreadyExists
from broker.core.model import Receipt, RootKey
from broker.core.secrets.sealing import encode
from tests.fakes.calls import operator
from tests.fakes.hsm import SoftwareHsm
from tests.fakes.memory_store import MemoryStore
from tests.fakes.refusals import refused
from tests.fakes.secrets import RotationHouse

REQUEST = "0b7e8f3e-1f5f-4c7e-9d59-0f6a4b3a2c1d"
OTHER_REQUEST = "1b7e8f3e-1f5f-4c7e-9d59-0f6a4b3a2c1d"
PIN, OTHER_PIN = {"pin": b"1234"}, {"pin": b"4321"}


@pytest.fixture
def house() -> RotationHouse:
    return RotationHouse(MemoryStore(), SoftwareHsm())


def receipt(house: RotationHouse, request_id: str = REQUEST, who: str = "operator/alice") -> Receipt:
    found = house.store.get(Receipt, who, request_id)
    assert found is not None
    return found


def mac(house: RotationHouse, request_id: str = REQUEST, who: str = "operator/alice") -> bytes:
    found = receipt(house, request_id, who).values_mac
    assert found is not None
    return found


def differs(house: RotationHouse, **more: Any) -> None:
    """The request of before with other values is refused."""
    again = {"fields": OTHER_PIN, "request_id": REQUEST, **more}
    refused(lambda: house.put(**again), AlreadyExists, "REQUEST_ID_REUSED")


@pytest.mark.parametrize("restarted", [False, True])
def test_other_values_are_refused_also_after_the_version_was_destroyed(
    house: RotationHouse, *, restarted: bool
) -> None:
    house.put(fields=PIN, request_id=REQUEST)
    house.destroy("team/app/db", 1)
    if restarted:
        house.restart()  # another process has another key of its own, and unwraps this one
    differs(house)
    assert house.put(fields=PIN, request_id=REQUEST).latest == 1
    differs(house, fields={**PIN, "more": b""})


def test_other_values_are_refused_after_the_root_key_was_rotated(house: RotationHouse) -> None:
    house.put(fields=PIN, request_id=REQUEST)
    house.destroy("team/app/db", 1)
    house.rotate()
    differs(house)
    assert house.put(fields=PIN, request_id=REQUEST).latest == 1
    house.put(fields=PIN, request_id=OTHER_REQUEST)
    assert (mac(house)[:4], mac(house, OTHER_REQUEST)[:4]) == (b"\0\0\0\1", b"\0\0\0\2")


def test_what_cannot_be_told_any_more_is_refused(house: RotationHouse) -> None:
    """Its root key is gone: the version tells as long as it is there, and then nobody can."""
    house.put(fields=PIN, request_id=REQUEST)
    house.rotate()
    house.quiet()
    assert [root.version for root in house.store.page(RootKey, limit=9)] == [2]
    assert house.put(fields=PIN, request_id=REQUEST).latest == 1
    differs(house)
    house.destroy("team/app/db", 1)
    differs(house)
    differs(house, fields=PIN)


@pytest.mark.parametrize("at", [0, 3, 20, -33, -1])
def test_ST_02_a_mac_that_was_altered_lets_nothing_pass(house: RotationHouse, at: int) -> None:
    house.put(fields=PIN, request_id=REQUEST)
    house.destroy("team/app/db", 1)
    altered = bytearray(mac(house))
    altered[at] ^= 1
    row = replace(receipt(house), values_mac=bytes(altered))
    house.store.rows[Receipt]["operator/alice", REQUEST] = row
    differs(house, fields=PIN)


def test_a_receipt_from_before_tells_what_it_did_before(house: RotationHouse) -> None:
    house.put(fields=PIN, request_id=REQUEST)
    house.store.rows[Receipt]["operator/alice", REQUEST] = replace(receipt(house), values_mac=None)
    differs(house)
    house.destroy("team/app/db", 1)
    assert house.put(fields=OTHER_PIN, request_id=REQUEST).latest == 1


def test_ST_01_equal_values_of_two_requests_cannot_be_told_from_their_receipts(house: RotationHouse) -> None:
    admins = operator("bob", "admins")
    house.put(fields=PIN, request_id=REQUEST)
    house.put(fields=PIN, request_id=OTHER_REQUEST)
    house.put(fields=PIN, request_id=REQUEST, principal=admins)
    house.put("team/app/web", fields=PIN, request_id="2b7e8f3e-1f5f-4c7e-9d59-0f6a4b3a2c1d")
    found = [row.values_mac for row in house.store.page(Receipt, limit=9)]
    assert len({one[-32:] for one in found if one is not None}) == 4


def test_ST_01_no_guess_can_be_held_against_a_receipt(house: RotationHouse) -> None:
    """A reader of the database has the wrapped key and the MAC: neither opens the other, nor is the MAC a hash."""
    house.put(fields=PIN, request_id=REQUEST)
    kept = mac(house)
    wrapped, told = kept[4:-32], kept[-32:]
    keys = (b"", wrapped, wrapped[:32], wrapped[-32:], wrapped[12:44], bytes(32), REQUEST.encode())
    texts = (b"1234", encode(PIN), REQUEST.encode() + encode(PIN))
    guesses = {hmac.digest(key, text, "sha256") for key, text in itertools.product(keys, texts)}
    assert told not in guesses | {hashlib.sha256(text).digest() for text in texts}
    assert len(wrapped) == 12 + 32 + 16  # nonce, key, tag


def test_the_key_of_the_macs_costs_one_hsm_call_a_process_and_none_without_a_request_id(house: RotationHouse) -> None:
    house.put(fields=PIN)
    before = house.hsm.calls.total()
    house.put(fields=PIN)
    plain = house.hsm.calls.total() - before
    house.put(fields=PIN, request_id=REQUEST)
    before = house.hsm.calls.total()
    house.put(fields=PIN, request_id=OTHER_REQUEST)
    assert house.hsm.calls.total() - before == plain == 1
    assert "1234" not in repr(house.secrets.__dict__)
