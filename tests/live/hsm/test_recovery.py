"""Module, sessions, login or token lost: served again without a restart, nothing made twice, nothing believed gone."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from broker.core.kinds import KeyType, KeyUsage, OaepHash
from broker.core.ports import KeyRef
from broker.hsm.config import HsmConfig
from broker.hsm.objects import Recipe, make
from tests.contracts.hsm.keys import Target, fresh, made, unmade
from tests.fakes.refusals import ending
from tests.live.hsm.losses import ES256, GCM, _quick
from tests.servers.softhsm import KeysHsm, alone

if TYPE_CHECKING:
    pass


def _each_loss_in_turn(folder: Path) -> list[str]:
    """Every operation as the first one after every loss."""
    hsm, saboteur = _quick(folder)
    signer, cipher, carried = (
        fresh(hsm, KeyType.EC_P256),
        fresh(hsm, KeyType.AES_256),
        fresh(hsm, KeyType.EC_P384, exportable=True),
    )
    sealed = hsm.encrypt(cipher, GCM, b"plaintext", b"")
    kek = Target().kek
    uses: dict[str, Callable[[], object]] = {
        "sign": lambda: hsm.sign(signer, ES256, [b"m"]),
        "public_key": lambda: hsm.public_key(signer),
        "encrypt": lambda: hsm.encrypt(cipher, GCM, b"", b""),
        "decrypt": lambda: hsm.decrypt(cipher, GCM, sealed, b""),
        "wrap": lambda: hsm.wrap(carried, kek, OaepHash.SHA1, exact=True),
        "random": lambda: hsm.random(16),
        "check": hsm.check,
        "seal": lambda: hsm.seal(carried),
        "generate": lambda: hsm.generate(signer, exportable=False),
        "generate new": lambda: fresh(hsm, KeyType.EC_P256),
        "destroy": lambda: hsm.destroy(carried),
    }
    losses = (saboteur.finalize, saboteur.close_all_sessions, saboteur.log_out)
    told = []
    for name, use in uses.items():
        for loss in losses if name != "destroy" else losses[2:]:
            loss()
            told.append(f"{loss.__name__} {name}: {ending(use)}")
    told.append(f"destroyed: {ending(lambda: hsm.public_key(carried))}")
    hsm.close()
    return told


def test_every_operation_is_served_after_every_loss(tmp_path: Path) -> None:
    told = alone(_each_loss_in_turn, tmp_path / "token")
    assert told.pop() == "destroyed: KEY_NOT_IN_HSM"
    assert [line for line in told if not line.endswith(": ok")] == []


def _token_away(folder: Path) -> list[str]:
    hsm, saboteur = _quick(folder)
    key = fresh(hsm, KeyType.EC_P256)
    hsm.sign(key, ES256, [b"m"])
    uses: list[Callable[[], object]] = [
        lambda: hsm.sign(key, ES256, [b"m"]),
        lambda: hsm.public_key(key),
        lambda: hsm.destroy(key),
        lambda: hsm.generate(key, exportable=False),
        hsm.check,
    ]
    told = []
    for use in uses:
        saboteur.take_token_away()
        told.append(ending(use))
        saboteur.bring_token_back()
        hsm.check()
    told.append(ending(lambda: hsm.sign(key, ES256, [b"m"])))
    hsm.close()
    return told


def test_FT_15_a_token_that_is_away_is_never_taken_for_an_empty_one(tmp_path: Path) -> None:
    assert alone(_token_away, tmp_path / "token") == [*["HSM_UNAVAILABLE"] * 5, "ok"]


def test_HS_22_one_dead_session_is_replaced_without_a_reload(hsm: KeysHsm, softhsm: HsmConfig) -> None:
    key = fresh(hsm, KeyType.EC_P256)
    reloads = hsm.reloads()
    hsm.sessions.run(lambda worker: worker.session.close())
    for _ in range(2 * softhsm.sessions):
        hsm.sign(key, ES256, [b"m"])
    assert hsm.reloads() == reloads


def test_HS_14_two_keys_under_one_id_are_both_refused(tmp_path: Path) -> None:
    assert alone(_two_under_one_id, tmp_path / "token") == ["KEY_AMBIGUOUS"] * 3


def _two_under_one_id(folder: Path) -> list[str]:
    hsm, _ = _quick(folder)
    key = fresh(hsm, KeyType.AES_256)

    recipe = Recipe(KeyType.AES_256, KeyUsage.ENCRYPT, exportable=False)
    hsm.locked(lambda worker: make(worker, key.hsm_id, recipe))
    told = [
        ending(lambda: hsm.encrypt(key, GCM, b"", b"")),
        ending(lambda: hsm.generate(key, exportable=False)),
        ending(lambda: hsm.seal(key)),
    ]
    hsm.close()
    return told


def _destroy_elsewhere(config: HsmConfig, *keys: KeyRef) -> None:
    hsm = KeysHsm(config)
    for key in keys:
        hsm.destroy(key)
    hsm.close()


def test_HS_16_a_key_destroyed_by_another_process_is_gone_here_too(hsm: KeysHsm, softhsm: HsmConfig) -> None:
    key = fresh(hsm, KeyType.EC_P256)
    carried, kek = fresh(hsm, KeyType.EC_P384, exportable=True), Target().kek
    hsm.sign(key, ES256, [b"m"])
    hsm.wrap(carried, kek, OaepHash.SHA1, exact=True)
    reloads = hsm.reloads()
    alone(_destroy_elsewhere, softhsm, key, carried)
    assert ending(lambda: hsm.sign(key, ES256, [b"m"])) == "KEY_NOT_IN_HSM"
    assert ending(lambda: hsm.wrap(carried, kek, OaepHash.SHA1, exact=True)) == "KEY_NOT_IN_HSM"
    assert hsm.reloads() == reloads, "a missing key is no reason to reload the module"


def wrap_for_ever(config: HsmConfig, hsm_id: bytes, tell: Connection) -> None:
    """It says when it has begun."""
    hsm = KeysHsm(config)
    key = made(hsm, unmade(KeyType.EC_P384, hsm_id=hsm_id), exportable=True)
    kek = Target().kek
    for done in count(1):
        hsm.wrap(key, kek, OaepHash.SHA1, exact=True)
        if done == 3:
            tell.send("wrapping")
