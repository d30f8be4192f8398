"""The binding of a key in the token, as ``broker.core.ports.Hsm`` promises it: whatever a row says, no other key."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from broker.core.errors import WrongState
from broker.core.kinds import EncryptionAlgorithm, KeyType, KeyUsage, OaepHash, Purpose, SignatureAlgorithm
from broker.core.ports import RESERVED_IDS, Device, Hsm, KeyRef
from tests.contracts.hsm.keys import RSA, SOFTWARE, Target, Whole, made, shared, unmade
from tests.fakes.refusals import refused

GCM = EncryptionAlgorithm.AES_GCM
ES256 = SignatureAlgorithm.ES256
TYPES = {Purpose.ROOT: KeyType.AES_256, Purpose.ROWS: KeyType.AES_256}
NAMES = {Purpose.KEY: "payments/1", Purpose.ROOT: "3"}
KINDS = (KeyType.EC_P256, KeyType.AES_256)
TARGET = Target()

Choice = Callable[[Sequence[Any]], Sequence[Any]]
Uses = dict[str, Callable[[Hsm, KeyRef], object]]
ALWAYS: Uses = {
    "generate": lambda ring, key: ring.generate(key, exportable=False),
    "generate an exportable one": lambda ring, key: ring.generate(key, exportable=True),
    "public_key": lambda ring, key: ring.public_key(key),
    "wrap": lambda ring, key: ring.wrap(key, TARGET.kek, OaepHash.SHA1, exact=False),
    "seal": lambda ring, key: ring.seal(key),
    "destroy": lambda ring, key: ring.destroy(key),
}
SIGNING: Uses = {**ALWAYS, "sign": lambda ring, key: ring.sign(key, ES256, [b"m"])}
ENCRYPTING: Uses = {
    **ALWAYS,
    "encrypt": lambda ring, key: ring.encrypt(key, GCM, b"m", b""),
    "decrypt": lambda ring, key: ring.decrypt(key, GCM, bytes(40), b""),
    "check_value": lambda ring, key: ring.check_value(key),
}


@pytest.fixture(params=["softhsm", "shim", "software"])
def device(request: pytest.FixtureRequest) -> Whole:
    if request.param == "software":
        return SOFTWARE
    real: Whole = request.getfixturevalue("hsm" if request.param == "softhsm" else "exact_hsm")
    return real


def generated(device: Device, purpose: Purpose, kind: KeyType | None = None) -> KeyRef:
    kind = kind or TYPES.get(purpose, KeyType.EC_P256)
    return made(device.keyring(purpose), unmade(kind, name=NAMES.get(purpose, "")), exportable=True)


def uses_of(key: KeyRef) -> Uses:
    return ENCRYPTING if key.type.symmetric else SIGNING


def assert_works(ring: Hsm, key: KeyRef) -> None:
    if key.type.symmetric:
        assert ring.decrypt(key, GCM, ring.encrypt(key, GCM, b"m", b"a"), b"a") == b"m"
    else:
        assert ring.sign(key, ES256, [b"m"])
    assert ring.wrap(key, TARGET.kek, OaepHash.SHA1, exact=False), "and it was not sealed"


def one_of(choices: Sequence[Any]) -> Sequence[Any]:
    return random.sample(choices, 1)


@pytest.mark.parametrize("purpose", Purpose)
def test_HS_17_a_keyring_does_nothing_with_a_key_of_another_purpose(device: Device, purpose: Purpose) -> None:
    """The row of a caller's key that names the root, audit or CA key; and every other way round.

    Here each use by each other purpose, of one kind of key under one name, other ones each time. `tests/soak` has all.
    """
    assert_nothing_done_elsewhere(device, purpose, one_of)


def assert_nothing_done_elsewhere(device: Device, purpose: Purpose, some: Choice) -> None:
    """Every use by every other keyring is refused, of the chosen kinds of keys under the chosen names."""
    ring = device.keyring(purpose)
    keys = {kind: generated(device, purpose, kind) for kind in KINDS}
    for other in set(Purpose) - {purpose}:
        foreign = device.keyring(other)
        for key in some(list(keys.values())):
            told = {
                (what, name): refused(partial(use, foreign, replace(key, name=name)), WrongState).reason
                for what, use in uses_of(key).items()
                for name in some(sorted({key.name, NAMES.get(other, ""), "payments/2"}))
            }
            assert set(told.values()) == {"KEY_NOT_THIS"}, (other, told)
    for key in keys.values():
        assert_works(ring, key)
        ring.destroy(key)


@pytest.mark.parametrize("purpose", [Purpose.KEY, Purpose.ROOT])
def test_HS_17_a_key_is_not_another_one_of_its_purpose(device: Device, purpose: Purpose) -> None:
    ring = device.keyring(purpose)
    for kind in KINDS:
        mine, others = (made(ring, unmade(kind, name=name), exportable=True) for name in ("7", "71"))
        assert_works(ring, others)
        for claimed in (replace(mine, hsm_id=others.hsm_id), replace(others, name=mine.name)):
            told = {
                what: refused(partial(use, ring, claimed), WrongState).reason for what, use in uses_of(mine).items()
            }
            assert set(told.values()) == {"KEY_NOT_THIS"}, told
        for key in (mine, others):
            assert_works(ring, key)
            ring.destroy(key)


LIES = [
    (KeyType.EC_P256, KeyUsage.SIGN, KeyType.EC_P384, KeyUsage.SIGN),
    (KeyType.EC_P256, KeyUsage.SIGN, KeyType.EC_SECP256K1, KeyUsage.SIGN),
    (KeyType.EC_P256, KeyUsage.SIGN, KeyType.ED25519, KeyUsage.SIGN),
    (KeyType.EC_P256, KeyUsage.SIGN, KeyType.RSA_2048, KeyUsage.SIGN),
    (KeyType.EC_P256, KeyUsage.SIGN, KeyType.AES_256, KeyUsage.ENCRYPT),
    (KeyType.AES_256, KeyUsage.ENCRYPT, KeyType.AES_128, KeyUsage.ENCRYPT),
    (KeyType.AES_256, KeyUsage.ENCRYPT, KeyType.EC_P256, KeyUsage.SIGN),
    (KeyType.RSA_2048, KeyUsage.SIGN, KeyType.RSA_2048, KeyUsage.ENCRYPT),
    (KeyType.RSA_2048, KeyUsage.ENCRYPT, KeyType.RSA_2048, KeyUsage.SIGN),
    (KeyType.RSA_2048, KeyUsage.SIGN, KeyType.RSA_3072, KeyUsage.SIGN),
]


@pytest.mark.parametrize(("kind", "usage", "said", "said_usage"), LIES)
def test_HS_17_a_row_cannot_change_type_size_or_usage(
    device: Whole, kind: KeyType, usage: KeyUsage, said: KeyType, said_usage: KeyUsage
) -> None:
    ring = device.keyring(Purpose.KEY)
    key = shared(device, kind, usage) if kind in RSA else made(ring, unmade(kind, usage))
    claimed = replace(key, type=said, usage=said_usage)
    for what in ("generate", "public_key", "seal", "destroy"):
        assert refused(lambda: ALWAYS[what](ring, claimed), WrongState).reason == "KEY_NOT_THIS", what  # noqa: B023
    assert ring.public_key(key) == key.public_key
    if kind not in RSA:
        ring.destroy(key)


@pytest.mark.parametrize("purpose", [Purpose.KEY, Purpose.ROOT])
@pytest.mark.parametrize("rest", [b"audit/001", b"", b"whatever-else"])
def test_HS_17_the_ids_of_the_brokers_own_keys_are_reserved(device: Device, purpose: Purpose, rest: bytes) -> None:
    for kind in KINDS:
        key = replace(unmade(kind, hsm_id=RESERVED_IDS + rest), public_key=b"" if kind.symmetric else b"x")
        for what, use in uses_of(key).items():
            assert refused(lambda: use(device.keyring(purpose), key), WrongState).reason == "KEY_NOT_THIS", what  # noqa: B023


@pytest.fixture
def root(device: Device) -> Iterator[tuple[Hsm, KeyRef]]:
    ring = device.keyring(Purpose.ROOT)
    key = made(ring, unmade(KeyType.AES_256, name="4"))
    yield ring, key
    ring.destroy(replace(key, check=None))


def test_FT_20_a_key_that_took_anothers_place_is_noticed(root: tuple[Hsm, KeyRef]) -> None:
    ring, key = root
    checked = replace(key, check=ring.check_value(key))
    assert ring.decrypt(checked, GCM, ring.encrypt(checked, GCM, b"m", b""), b"") == b"m"
    assert ring.public_key(checked) is None
    sealed = ring.encrypt(checked, GCM, b"m", b"")
    ring.destroy(checked)
    ring.generate(key, exportable=False)  # by another token, or by somebody who has this one's PIN
    uses: list[Callable[[], object]] = [
        lambda: ring.encrypt(checked, GCM, b"m", b""),
        lambda: ring.decrypt(checked, GCM, sealed, b""),
        lambda: ring.public_key(checked),
        lambda: ring.check_value(checked),
        lambda: ring.destroy(checked),
    ]
    assert [refused(use, WrongState).reason for use in uses] == ["KEY_NOT_THIS"] * len(uses)


@pytest.mark.parametrize("damage", [b"", b"x", bytes(46), bytes(range(46)), bytes(10_000)], ids=len)
def test_FT_20_a_check_value_that_is_none_opens_nothing(root: tuple[Hsm, KeyRef], damage: bytes) -> None:
    ring, key = root
    refused(lambda: ring.encrypt(replace(key, check=damage), GCM, b"m", b""), WrongState, "KEY_NOT_THIS")
    assert_same_name_only(ring, key)


def assert_same_name_only(ring: Hsm, key: KeyRef) -> None:
    """A check value is of one key under one name."""
    twin = made(ring, unmade(KeyType.AES_256, name="5"))
    check = ring.check_value(key)
    refused(lambda: ring.encrypt(replace(twin, check=check), GCM, b"m", b""), WrongState, "KEY_NOT_THIS")
    ring.destroy(twin)


def test_a_keyring_leads_to_no_other(device: Device) -> None:
    ring = device.keyring(Purpose.KEY)
    assert not any(hasattr(ring, door) for door in ("keyring", "adopt", "random", "close"))
