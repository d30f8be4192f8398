"""The HSM edge under load: threads, processes, losses at random, kills."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pkcs11 import Attribute, ObjectClass

from broker.core.errors import BrokerError
from broker.core.kinds import KeyType, OaepHash, SignatureAlgorithm
from broker.core.ports import KeyRef
from broker.hsm.config import HsmConfig
from broker.hsm.sessions import Worker
from tests.contracts.hsm.keys import Target, fresh, verify
from tests.fakes.refusals import ending
from tests.live.hsm.losses import ES256, GCM, Saboteur, _quick
from tests.live.hsm.test_recovery import wrap_for_ever
from tests.servers.patience import busy
from tests.servers.softhsm import FRESH, KeysHsm, alone, make_token


def _paced(folder: Path) -> list[tuple[float, str]]:
    """What each call gets, by a clock that only this test moves."""
    now = [0.0]
    config = make_token(folder)
    hsm = KeysHsm(config, clock=lambda: now[0])
    saboteur = Saboteur(hsm, folder / "tokens")
    told = []

    def at(moment: float) -> None:
        now[0] = moment
        told.append((moment, ending(hsm.check)))

    saboteur.log_out()
    at(0)  # the first reload comes at once
    saboteur.log_out()
    at(29)  # too soon after one that worked
    saboteur.take_token_away()
    at(30)  # due, but the token is away
    at(34)  # too soon after one that did not
    saboteur.bring_token_back()
    at(34.5)
    at(35)
    hsm.close()
    at(100)
    return told


def test_reloads_keep_their_distance(tmp_path: Path) -> None:
    assert alone(_paced, tmp_path / "token") == [
        (0, "ok"),
        (29, "HSM_UNAVAILABLE"),
        (30, "HSM_UNAVAILABLE"),
        (34, "HSM_UNAVAILABLE"),
        (34.5, "HSM_UNAVAILABLE"),
        (35, "ok"),
        (100, "HSM_UNAVAILABLE"),
    ]


_MIX = [*["sign"] * 6, *["cipher"] * 3, "own", "read", "generate", "random"]


def hammer(
    hsm: KeysHsm,
    seconds: float,
    *,
    tolerate: frozenset[str] = frozenset(),
    enough: Callable[[], bool] = lambda: True,
    counts: dict[str, int] | None = None,
) -> dict[str, int]:
    """8 threads of mixed operations; every signature is verified under its own key. Returns ``counts`` by operation.

    On a busy computer it goes on until it is ``enough``.
    """
    stop = time.monotonic() + seconds
    at_last = stop + busy(seconds)
    counts = {} if counts is None else counts
    tally = threading.Lock()
    faults: list[str] = []
    kek = Target().kek
    shared = [fresh(hsm, KeyType.EC_P256) for _ in range(4)]

    def work(seed: int) -> None:
        own_choice = random.Random(seed)  # noqa: S311 - which operation comes next is no secret
        cipher = fresh(hsm, KeyType.AES_256)
        while not faults and time.monotonic() < (stop if enough() else at_last):
            name = own_choice.choice(_MIX)
            try:
                _operation(hsm, name, own_choice.choice(shared), cipher, kek)
            except BrokerError as refusal:
                name = refusal.reason
                if name not in tolerate:
                    faults.append(f"{name}: {refusal.message} {refusal.__cause__!r}")
            except Exception as fault:  # noqa: BLE001 - whatever it is, the main thread must hear of it
                faults.append(repr(fault))
            with tally:
                counts[name] = counts.get(name, 0) + 1

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 60)
    assert faults == [], faults  # said in full, since another process may run this
    return counts


def _operation(hsm: KeysHsm, name: str, key: KeyRef, cipher: KeyRef, kek: Any) -> None:
    message = os.urandom(40)
    if name == "sign":
        for signature in hsm.sign(key, ES256, [message] * 3):
            verify(key.public_key or b"", ES256, signature, message)
    elif name == "own":
        own = fresh(hsm, KeyType.EC_P384, exportable=True)
        (signature,) = hsm.sign(own, SignatureAlgorithm.ES384, [message])
        verify(own.public_key or b"", SignatureAlgorithm.ES384, signature, message)
        hsm.wrap(own, kek, OaepHash.SHA1, exact=True)
        hsm.destroy(own)
    elif name == "cipher":
        assert hsm.decrypt(cipher, GCM, hsm.encrypt(cipher, GCM, message, b"a"), b"a") == message
    elif name == "read":
        assert len(hsm.public_key(key) or b"") == 91
    elif name == "generate":
        own = fresh(hsm, KeyType.AES_128)
        hsm.generate(own, exportable=False)
        hsm.destroy(own)
    else:
        assert len(hsm.random(32)) == 32


def test_HS_22_threads_do_not_get_into_each_others_way(hsm: KeysHsm) -> None:
    counts: dict[str, int] = {}
    hammer(hsm, 1, counts=counts, enough=lambda: counts.get("sign", 0) > 60 and counts.get("own", 0) > 6)
    assert counts["sign"] > 60
    assert counts["own"] > 6


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_HS_22_threads_do_not_get_into_each_others_way_for_a_minute(hsm: KeysHsm) -> None:
    assert hammer(hsm, 60)["sign"] > 1000


def _hammer_elsewhere(config: HsmConfig) -> dict[str, int]:
    hsm = KeysHsm(config)
    counts = hammer(hsm, 30, tolerate=frozenset({"HSM_UNAVAILABLE"}))
    hsm.close()
    return counts


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_FT_21_two_processes_share_a_token(tmp_path: Path) -> None:
    """SoftHSM 2.6.1 then shows an object twice now and then: such a key waits for a reload, the others are served."""
    config = make_token(tmp_path / "token")
    with ThreadPoolExecutor(2) as both:
        beside = [both.submit(alone, _hammer_elsewhere, config) for _ in range(2)]
        for counts in [process.result() for process in beside]:
            assert counts["sign"] > 100
            assert counts.get("HSM_UNAVAILABLE", 0) < counts["sign"] / 10


def _lost_at_random(folder: Path, seconds: float, pace: float, least: int) -> tuple[int, dict[str, int], float, int]:
    """(losses, at least so many, counts, the longest time any thread went unserved, duplicate ids) under load."""
    hsm, saboteur = _quick(folder)
    losses = [saboteur.finalize, saboteur.close_all_sessions, saboteur.log_out, saboteur.take_token_away]
    done = threading.Event()
    happened = 0
    longest = 0.0

    def sabotage() -> None:
        nonlocal happened, longest
        choice = random.Random(7)  # noqa: S311 - which loss comes next is no secret
        while not done.wait(pace):
            loss = choice.choice(losses)
            loss()
            happened += 1
            if loss == saboteur.take_token_away:
                done.wait(pace / 4)
                saboteur.bring_token_back()
            began = time.monotonic()
            while ending(hsm.check) != "ok":
                assert time.monotonic() - began < busy(10)
            longest = max(longest, time.monotonic() - began)

    thread = threading.Thread(target=sabotage)
    thread.start()
    try:
        counts: dict[str, int] = {}
        hammer(
            hsm, seconds, tolerate=frozenset({"HSM_UNAVAILABLE"}), counts=counts,
            enough=lambda: happened >= least and counts.get("sign", 0) > 3 * least,
        )  # fmt: skip
    finally:
        done.set()
        thread.join(60)
    ids = _ids(hsm)
    hsm.close()
    return happened, counts, longest, len(ids) - len(set(ids))


def _ids(hsm: KeysHsm) -> list[tuple[int, bytes]]:
    def read(worker: Worker) -> list[tuple[int, bytes]]:
        return [(int(thing.object_class), thing.id) for thing in worker.session.get_objects()]

    return hsm.locked(read)


def _assert_survived(outcome: tuple[int, dict[str, int], float, int], losses: int) -> None:
    happened, counts, longest, duplicates = outcome
    assert happened >= losses
    assert counts["sign"] > 3 * losses
    assert longest < busy(10)
    assert duplicates == 0


def test_FT_16_lost_at_random_under_load_it_serves_again(tmp_path: Path) -> None:
    _assert_survived(alone(_lost_at_random, tmp_path / "token", 1.0, 0.2, 3), losses=3)


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_FT_16_lost_at_random_under_load_for_a_minute(tmp_path: Path) -> None:
    _assert_survived(alone(_lost_at_random, tmp_path / "token", 60.0, 0.3, 20), losses=20)


def _killed_while_wrapping(config: HsmConfig, kills: int) -> None:
    for _ in range(kills):
        ours, theirs = FRESH.Pipe(duplex=False)
        process = FRESH.Process(target=wrap_for_ever, args=(config, bytes(16), theirs))
        process.start()
        theirs.close()
        assert ours.recv() == "wrapping"
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        ours.close()


def _objects(config: HsmConfig) -> list[tuple[int, bytes]]:
    hsm = KeysHsm(config)
    found = sorted(_ids(hsm))
    hsm.close()
    return found


def _assert_no_residue(folder: Path, kills: int) -> None:
    config = make_token(folder)
    _killed_while_wrapping(config, kills)
    assert alone(_objects, config) == sorted(
        [(int(ObjectClass.PUBLIC_KEY), bytes(16)), (int(ObjectClass.PRIVATE_KEY), bytes(16))]
    )


def test_BY_09_a_kill_while_wrapping_leaves_no_ephemeral_key(tmp_path: Path) -> None:
    _assert_no_residue(tmp_path / "token", kills=3)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_BY_09_a_hundred_kills_leave_no_ephemeral_key(tmp_path: Path) -> None:
    _assert_no_residue(tmp_path / "token", kills=100)


def test_BY_09_a_wrap_leaves_no_session_object(hsm: KeysHsm) -> None:
    key = fresh(hsm, KeyType.EC_P384, exportable=True)
    hsm.wrap(key, Target().kek, OaepHash.SHA1, exact=True)
    with pytest.raises(BrokerError):
        hsm.wrap(fresh(hsm, KeyType.EC_P384), Target().kek, OaepHash.SHA1, exact=True)
    assert hsm.locked(lambda worker: list(worker.session.get_objects({Attribute.TOKEN: False}))) == []
