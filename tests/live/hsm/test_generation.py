"""A key that was just made is known: nothing is searched for, and nothing is taken for it that it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.core.kinds import KeyType, OaepHash, Purpose
from broker.core.ports import KeyRef
from broker.hsm import generation
from broker.hsm.binding import bind
from broker.hsm.sessions import Worker
from tests.contracts.hsm.keys import Target, fresh, spki_of, unmade
from tests.servers.shim import Shim, make_shim_token
from tests.servers.softhsm import KeysHsm, alone

P256 = KeyType.EC_P256


A_WHILE = 100.0
"""Seconds in which even a busy computer makes a key that is to be made at once."""


def _opened(folder: Path) -> tuple[KeysHsm, Shim]:
    hsm = KeysHsm(make_shim_token(folder, sessions=2))
    shim = Shim(folder)
    shim.forget()
    return hsm, shim


def _wrapped(hsm: KeysHsm, key: KeyRef, target: Target) -> bytes:
    """The public half of what the target opens."""
    return spki_of(target.open(hsm.wrap(key, target.kek, OaepHash.SHA1, exact=True), OaepHash.SHA1))


def _searches(folder: Path) -> dict[str, int]:
    with pytest.MonkeyPatch.context() as patch:
        # Patched: the real time is a second, in which a busy computer may not come to it.
        patch.setattr(generation, "FRESH_SECONDS", A_WHILE)
        return _searched(folder)


def _searched(folder: Path) -> dict[str, int]:
    hsm, shim = _opened(folder)
    told = {}
    for kind in (P256, KeyType.AES_256):
        for number, new in enumerate((True, False)):
            shim.forget()
            hsm.generate(unmade(kind), exportable=True, fresh=new)
            told[f"{kind} {'fresh' if number == 0 else 'not'}"] = len(shim.calls("C_FindObjectsInit"))
    key, target = fresh(hsm, P256, exportable=True), Target()
    shim.forget()
    assert _wrapped(hsm, key, target) == key.public_key
    told["wrap"] = len(shim.calls("C_FindObjectsInit"))
    hsm.close()
    return told


def test_a_fresh_pair_is_made_and_wrapped_without_a_search_and_a_secret_key_never(tmp_path: Path) -> None:
    told = alone(_searches, tmp_path / "token")
    assert told == {f"{P256} fresh": 0, f"{P256} not": 1, "aes-256 fresh": 1, "aes-256 not": 1, "wrap": 0}


def _repeats(folder: Path) -> list[int]:
    hsm, shim = _opened(folder)
    told = []

    def one(*, patience: float = A_WHILE) -> None:
        shim.forget()
        key = unmade(P256)
        first = hsm.generate(key, exportable=True)
        with pytest.MonkeyPatch.context() as patch:
            # Patched: a turn that takes longer than a second would have to be waited for.
            patch.setattr(generation, "FRESH_SECONDS", patience)
            if patience < 0:
                hsm.forget_handles()
            assert hsm.generate(key, exportable=True, fresh=True) == first
        told.append(len(shim.calls("C_GenerateKeyPair")))

    one()  # a repetition overtook the first try in this process
    one(patience=-1.0)  # or in another, while the first try waited for its turn
    hsm.close()
    return told


def test_a_repetition_that_came_first_is_found(tmp_path: Path) -> None:
    assert alone(_repeats, tmp_path / "token") == [1, 1]


def _misled(folder: Path) -> list[bool]:
    hsm, _ = _opened(folder)
    key, other, target = fresh(hsm, P256, exportable=True), fresh(hsm, P256, exportable=True), Target()

    def confuse(worker: Worker) -> None:
        worker.handles[bind(Purpose.KEY, key)] = worker.handles[bind(Purpose.KEY, other)]

    hsm.sessions.run(confuse)
    told = [_wrapped(hsm, key, target) == key.public_key]
    hsm.sessions.run(lambda worker: worker.handles.update({bind(Purpose.KEY, key): 1 << 20}))
    told.append(_wrapped(hsm, key, target) == key.public_key)
    hsm.close()
    return told


def test_a_handle_of_another_key_or_of_none_is_not_believed(tmp_path: Path) -> None:
    assert alone(_misled, tmp_path / "token") == [True, True]
