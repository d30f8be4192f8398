"""What sealing promises: nothing opens that was not sealed for this very place, and no data key stays too long."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.errors import Unavailable, WrongState
from broker.core.kinds import EncryptionAlgorithm, KeyType
from broker.core.ports import KeyRef
from broker.core.secrets.sealing import Sealing
from tests.contracts.hsm.keys import made, unmade
from tests.fakes.calls import Clock
from tests.fakes.hsm import SoftwareHsm
from tests.fakes.refusals import refused

FIELDS = {"user": b"app", "password": b"canary-hunter2"}
KEEP = timedelta(seconds=60)


def root(hsm: SoftwareHsm, version: int) -> KeyRef:
    return made(hsm, unmade(KeyType.AES_256, hsm_id=b"root%012d" % version, name=str(version)))


@dataclass
class House:
    keep: timedelta = KEEP
    entries: int = 100

    def __post_init__(self) -> None:
        self.hsm, self.clock = SoftwareHsm(), Clock()
        self.roots = {1: root(self.hsm, 1)}
        self.sealing = self.made()

    def made(self, tenant: str = "one.example") -> Sealing:
        return Sealing(self.hsm, self.roots, self.clock, self.keep, tenant=tenant, entries=self.entries)

    def rotate(self) -> None:
        version = max(self.roots) + 1
        self.roots[version] = root(self.hsm, version)
        self.sealing.use_roots(self.roots)

    def row(self, name: str = "team/db", version: int = 1, fields: dict[str, bytes] | None = None) -> Row:
        return Row(name, version, *self.sealing.seal(name, version, fields or FIELDS))

    def asked(self) -> int:
        return self.hsm.calls["decrypt"]


@dataclass(frozen=True)
class Row:
    """A stored version, as far as sealing knows of it."""

    name: str
    version: int
    root: int
    data_key: bytes
    sealed: bytes

    def opened(self, sealing: Sealing) -> dict[str, bytes]:
        return sealing.open(self.name, self.version, self.root, self.data_key, self.sealed)


@given(st.dictionaries(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}", fullmatch=True), st.binary(max_size=40)))
def test_what_was_sealed_opens_to_the_same_fields(fields: dict[str, bytes]) -> None:
    house = House()
    assert Row("a", 1, *house.sealing.seal("a", 1, fields)).opened(house.sealing) == fields


def test_fields_that_differ_only_in_their_borders_are_sealed_differently() -> None:
    house = House()
    for fields in ({"a": b"bc"}, {"ab": b"c"}, {"a": b"b", "c": b""}, {"a": b"", "b": b"c"}):
        assert house.row(fields=fields).opened(house.sealing) == fields


def test_no_value_and_no_name_of_a_field_is_in_what_rests() -> None:
    row = House().row()
    for secret in (b"canary", b"password", b"user"):
        assert secret not in row.data_key + row.sealed


def flip(one: bytes, source: random.Random) -> bytes:
    place = source.randrange(len(one))
    return one[:place] + bytes([one[place] ^ (1 << source.randrange(8))]) + one[place + 1 :]


def cut(one: bytes, source: random.Random) -> bytes:
    start, end = sorted(source.choices(range(len(one) + 1), k=2))
    return one[:start] + one[end:] if (start, end) != (0, 0) and start != end else one[:-1]


Tamper = Callable[[Row, Row, random.Random], Row]
TAMPERS: dict[str, Tamper] = {
    "a bit of the fields": lambda row, _, source: replace(row, sealed=flip(row.sealed, source)),
    "a bit of the data key": lambda row, _, source: replace(row, data_key=flip(row.data_key, source)),
    "fields cut": lambda row, _, source: replace(row, sealed=cut(row.sealed, source)),
    "data key cut": lambda row, _, source: replace(row, data_key=cut(row.data_key, source)),
    "fields longer": lambda row, _, source: replace(row, sealed=row.sealed + source.randbytes(source.randrange(1, 40))),
    "data key longer": lambda row, _, source: replace(row, data_key=row.data_key + source.randbytes(1)),
    "fields spliced": lambda row, other, source: replace(
        row, sealed=row.sealed[: (at := source.randrange(13, 30))] + other.sealed[at:]
    ),
    "data key spliced": lambda row, other, source: replace(
        row, data_key=row.data_key[: (at := source.randrange(13, 44))] + other.data_key[at:]
    ),
    "fields of another": lambda row, other, _: replace(row, sealed=other.sealed),
    "data key of another": lambda row, other, _: replace(row, data_key=other.data_key),
    "the whole of another": lambda row, other, _: replace(other, name=row.name, version=row.version),
    "another name": lambda row, _, source: replace(row, name=row.name + source.choice(("a", "/a", "-1"))),
    "another version": lambda row, _, source: replace(row, version=row.version + source.choice((1, -1, 256, 2**31))),
    "another root": lambda row, _, source: replace(
        row, root=source.choice([one for one in (0, 1, 2, 3, 9) if one != row.root])
    ),
    "nothing": lambda row, _, source: replace(row, sealed=b"") if source.random() < 0.5 else replace(row, data_key=b""),
}


@pytest.mark.parametrize("count", [2_000, pytest.param(10_000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("kept", [True, False], ids=["data keys kept", "the HSM each time"])
def test_ST_02_HS_09_of_thousands_of_tampered_rows_none_opens(*, kept: bool, count: int) -> None:
    source = random.Random(902)  # noqa: S311 - which rows, not secrets
    house = House(keep=KEEP if kept else timedelta(0), entries=10_000)
    rows = []
    for version in range(1, 61):
        if version in {21, 41}:
            house.rotate()
        rows.append(house.row(source.choice(("team/db", "team/app", "a")), version, {"f": source.randbytes(64)}))
    for row in rows:
        row.opened(house.sealing)  # where data keys are kept, they are
    tried = 0
    for _ in range(3 + count // len(TAMPERS)):
        for tamper in TAMPERS.values():
            row, other = source.sample(rows, 2)
            changed = tamper(row, other, source)
            if changed != row:
                refused(partial(changed.opened, house.sealing), reason="SECRET_DAMAGED")
                tried += 1
    assert tried >= count
    assert all(row.opened(house.sealing) for row in rows)


def test_HS_09_what_another_trust_domain_sealed_does_not_open() -> None:
    house = House()
    refused(partial(house.row().opened, house.made(tenant="two.example")), reason="SECRET_DAMAGED")


def test_HS_08_no_nonce_and_no_data_key_is_used_twice() -> None:
    house = House()
    seals = 20_000
    outer, inner = set(), set()
    for _ in range(seals):
        row = house.row()  # the same place and the same fields every time
        outer.add(row.data_key[:12])
        inner.add(row.sealed[:12])
    assert len(outer) == len(inner) == seals


def test_HS_08_a_rewrap_takes_a_new_nonce_and_keeps_the_sealed_fields() -> None:
    house = House()
    row = house.row()
    again = [house.sealing.rewrap(row.name, row.version, row.root, row.data_key) for _ in range(50)]
    assert len({wrapped[:12] for _, wrapped in again}) == 50
    for version, wrapped in again:
        assert replace(row, root=version, data_key=wrapped).opened(house.sealing) == FIELDS


def test_rewrapping_moves_to_the_newest_root_key() -> None:
    house = House()
    row = house.row()
    house.rotate()
    assert house.row(version=2).root == 2
    version, wrapped = house.sealing.rewrap(row.name, row.version, row.root, row.data_key)
    assert version == 2
    house.sealing.use_roots({2: house.roots[2]})
    assert replace(row, root=2, data_key=wrapped).opened(house.sealing) == FIELDS
    refused(partial(row.opened, house.sealing), reason="SECRET_DAMAGED")  # ST-14: a retired root key opens nothing


def test_a_data_key_is_kept_for_its_time_and_no_longer() -> None:
    house = House()
    row = house.row()
    for _ in range(5):
        row.opened(house.sealing)
    assert house.asked() == 1
    house.clock.forward(seconds=59)
    row.opened(house.sealing)
    assert house.asked() == 1  # being read does not prolong it
    house.clock.forward(seconds=1)
    row.opened(house.sealing)
    assert house.asked() == 2
    house.clock.forward(seconds=-1)  # a clock that is set back does not prolong it either
    row.opened(house.sealing)
    assert house.asked() == 3


def kept(sealing: Sealing) -> list[Any]:
    """The ciphers in memory, None for what was forgotten."""
    return [each.cipher for each in sealing._kept.values()]  # noqa: SLF001 - of what is in memory nobody is told


def test_with_a_time_of_0_the_hsm_is_asked_each_time_and_nothing_is_kept() -> None:
    house = House(keep=timedelta(0))
    row = house.row()
    for _ in range(3):
        row.opened(house.sealing)
    house.sealing.forget(row.name, row.version)
    assert house.asked() == 3
    assert not kept(house.sealing)


def test_no_more_data_keys_are_kept_than_there_may_be() -> None:
    house = House(entries=10)
    rows = [house.row(version=number) for number in range(1, 31)]
    for row in rows:
        row.opened(house.sealing)
    assert len(kept(house.sealing)) == 10
    asked = house.asked()
    for row in rows[-10:]:
        row.opened(house.sealing)
    assert house.asked() == asked


def test_HS_16_a_data_key_is_gone_once_it_is_forgotten() -> None:
    house = House()
    row, other = house.row(), house.row(version=2)
    row.opened(house.sealing)
    other.opened(house.sealing)
    house.sealing.forget(row.name, row.version)
    assert kept(house.sealing).count(None) == 1
    other.opened(house.sealing)
    assert house.asked() == 2
    row.opened(house.sealing)
    assert house.asked() == 3


def test_HS_16_a_read_that_was_under_way_does_not_bring_a_forgotten_data_key_back() -> None:
    house = House()
    row = house.row()
    decrypt, inside, go_on = house.hsm.decrypt, threading.Event(), threading.Event()

    def slow(key: KeyRef, algorithm: EncryptionAlgorithm, ciphertext: bytes, aad: bytes) -> bytes:
        inside.set()
        assert go_on.wait(60)
        return decrypt(key, algorithm, ciphertext, aad)

    # Put in its place: the read has to be under way in the HSM.
    house.hsm.decrypt = slow  # type: ignore[method-assign]
    reader = threading.Thread(target=row.opened, args=(house.sealing,))
    reader.start()
    assert inside.wait(60)
    house.sealing.forget(row.name, row.version)
    go_on.set()
    reader.join()
    assert set(kept(house.sealing)) == {None}


def test_HS_16_what_is_over_is_dropped_even_if_nobody_asks_again() -> None:
    house = House()
    house.row().opened(house.sealing)
    house.clock.forward(seconds=60)
    house.sealing.sweep()
    assert not kept(house.sealing)


def test_an_hsm_that_is_away_is_said_to_be_away_and_not_taken_for_damage() -> None:
    house = House()
    row = house.row()
    house.hsm.away = True
    with pytest.raises(Unavailable):
        row.opened(house.sealing)
    with pytest.raises(Unavailable):
        house.row()


def test_a_root_key_that_the_token_lacks_has_a_reason_of_its_own() -> None:
    house = House()
    row = house.row()
    house.hsm.destroy(house.roots[1])
    refused(partial(row.opened, house.sealing), reason="ROOT_KEY_MISSING")
    with pytest.raises(WrongState) as none_left:
        Sealing(house.hsm, {}, house.clock, KEEP).seal("a", 1, FIELDS)
    assert none_left.value.reason == "ROOT_KEY_MISSING"


def test_neither_repr_nor_refusal_shows_a_value() -> None:
    house = House()
    row = house.row()
    row.opened(house.sealing)
    shown = repr(house.sealing) + repr(vars(house.sealing))
    with pytest.raises(WrongState) as refusal:
        replace(row, version=2).opened(house.sealing)
    assert "canary" not in shown + str(refusal.value)
    assert row.data_key.hex() not in shown
