"""Objects that others put into the token, and handles that are another key's: one key's matter, and nobody else's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pkcs11
import pytest
from pkcs11 import Attribute, MechanismFlag
from pkcs11 import KeyType as CkKeyType

from broker.core.errors import BrokerError
from broker.core.kinds import EncryptionAlgorithm, KeyType, KeyUsage, Purpose, SignatureAlgorithm
from broker.core.ports import KeyRef
from broker.hsm.binding import bind
from broker.hsm.config import HsmConfig
from broker.hsm.objects import Recipe, make
from broker.hsm.sessions import Worker
from tests.contracts.hsm.keys import fresh, made, unmade
from tests.fakes.refusals import ending
from tests.servers.softhsm import KeysHsm, alone, make_token

GCM = EncryptionAlgorithm.AES_GCM
ES256 = SignatureAlgorithm.ES256


def plant(hsm: KeysHsm, hsm_id: bytes, kind: KeyType, label: str) -> None:
    usage = KeyUsage.ENCRYPT if kind.symmetric else KeyUsage.SIGN
    hsm.locked(lambda worker: make(worker, hsm_id, Recipe(kind, usage, exportable=False), label))


def labels(config: HsmConfig, hsm_id: bytes) -> list[str]:
    """What is in the token under this id, by the bare binding."""
    library = pkcs11.lib(str(config.module))
    token = library.get_token(token_label=config.token_label)
    with token.open(user_pin=config.pin_file.read_text().strip()) as session:
        found = sorted(str(thing[Attribute.LABEL]) for thing in session.get_objects({Attribute.ID: hsm_id}))
    library.finalize()
    return found


def _stray(folder: Path, label: str) -> dict[str, object]:
    config = make_token(folder, sessions=2)
    hsm = KeysHsm(config)
    key, other = fresh(hsm, KeyType.AES_256), fresh(hsm, KeyType.EC_P256)
    plant(hsm, key.hsm_id, KeyType.AES_256, label)
    told: dict[str, object] = {"uses": [], "others": []}
    for _ in range(3):
        told["uses"] += [ending(lambda: hsm.encrypt(key, GCM, b"m", b""))]  # type: ignore[operator]
        told["others"] += [ending(lambda: hsm.sign(other, ES256, [b"m"]))]  # type: ignore[operator]
    told["reloads"] = hsm.reloads()
    told["destroy"] = ending(lambda: hsm.destroy(key))
    hsm.close()
    told["left"] = labels(config, key.hsm_id)
    return told


def test_HS_14_a_stray_object_is_its_keys_matter_alone(tmp_path: Path) -> None:
    told = alone(_stray, tmp_path / "token", "somebody else's")
    assert told == {
        "uses": ["KEY_AMBIGUOUS"] * 3, "others": ["ok"] * 3, "reloads": 0, "destroy": "ok", "left": ["somebody else's"],
    }  # fmt: skip


def test_HS_14_a_double_that_calls_itself_the_key_costs_one_reload(tmp_path: Path) -> None:
    """Two objects that look alike may be one that SoftHSM shows twice; that is looked into once, and never again."""
    told = alone(_stray, tmp_path / "token", "broker:key:tests/1")
    assert told == {"uses": ["KEY_AMBIGUOUS"] * 3, "others": ["ok"] * 3, "reloads": 1, "destroy": "ok", "left": []}


def _stray_that_goes(folder: Path) -> list[str]:
    hsm = KeysHsm(make_token(folder, sessions=2))
    key = fresh(hsm, KeyType.AES_256)
    plant(hsm, key.hsm_id, KeyType.AES_256, "tests")
    told = [ending(lambda: hsm.encrypt(key, GCM, b"m", b""))]

    def remove(worker: Worker) -> None:
        for thing in hsm.sessions.search(worker, {Attribute.LABEL: "tests"}):
            thing.destroy()

    hsm.locked(remove)
    told.append(ending(lambda: hsm.encrypt(key, GCM, b"m", b"")))
    hsm.close()
    return told


def test_HS_14_a_key_whose_stray_is_gone_is_used_again(tmp_path: Path) -> None:
    assert alone(_stray_that_goes, tmp_path / "token") == ["KEY_AMBIGUOUS", "ok"]


def _second(folder: Path, purpose: Purpose, label: str) -> list[str]:
    config = make_token(folder, sessions=2)
    hsm = KeysHsm(config)
    kind = KeyType.AES_256 if purpose is Purpose.ROOT else KeyType.EC_P256
    key = made(hsm.keyring(purpose), unmade(kind, name="1" if purpose is Purpose.ROOT else ""))
    plant(hsm, key.hsm_id, kind, label)
    hsm.close()
    try:
        KeysHsm(config).close()
    except BrokerError as refusal:
        return [refusal.reason, refusal.message]
    return ["started"]


@pytest.mark.parametrize(("purpose", "own"), [(Purpose.ROOT, "broker:root:1"), (Purpose.AUDIT, "broker:audit:")])
@pytest.mark.parametrize("label", ["own", "another"])
def test_HS_14_a_second_key_of_the_brokers_own_stops_the_start(
    tmp_path: Path, purpose: Purpose, own: str, label: str
) -> None:
    told = alone(_second, tmp_path / "token", purpose, own if label == "own" else "another")
    assert told[0] == "KEY_AMBIGUOUS"
    assert "Find out who made it" in told[1]
    assert "remove" not in told[1]  # it may be another program's


def _foreign(folder: Path) -> list[str]:
    """Keys of another program: with several purposes, without a label, named like their ids."""
    config = make_token(folder, sessions=2)
    hsm = KeysHsm(config)
    mixed = MechanismFlag.SIGN | MechanismFlag.DECRYPT | MechanismFlag.WRAP | MechanismFlag.UNWRAP

    def put(worker: Worker) -> None:
        for name, label in ((b"4711", "4711"), (b"4712", b"4712".hex())):
            worker.session.generate_keypair(CkKeyType.RSA, 2048, id=name, label=label, store=True, capabilities=mixed)
        worker.session.generate_key(CkKeyType.AES, 256, store=True, capabilities=mixed)

    hsm.sessions.run(put)
    hsm.close()
    before = labels(config, b"4711")
    hsm = KeysHsm(config)
    told = [ending(lambda: hsm.destroy(unmade(KeyType.RSA_2048, hsm_id=b"4711")))]
    told.append(ending(lambda: hsm.generate(unmade(KeyType.RSA_2048, hsm_id=b"4711"), exportable=False)))
    told.append(ending(lambda: hsm.destroy(unmade(KeyType.RSA_2048, hsm_id=b"4712"))))
    hsm.close()
    assert labels(config, b"4712") == [b"4712".hex()] * 2
    assert labels(config, b"4711") == before
    return told


def test_keys_of_another_program_are_left_alone(tmp_path: Path) -> None:
    assert alone(_foreign, tmp_path / "token") == ["KEY_NOT_THIS", "KEY_NOT_THIS", "HSM_NOT_ADOPTED"]


def exchange(hsm: KeysHsm, *keys: KeyRef) -> None:
    """Let each of two keys be remembered by the other's handle."""
    first, second = (bind(Purpose.KEY, key) for key in keys)

    def swap(worker: Worker) -> None:
        handles: dict[Any, int] = worker.handles
        handles[first], handles[second] = handles[second], handles[first]

    hsm.sessions.run(swap)


@pytest.mark.parametrize("kind", [KeyType.AES_128, KeyType.AES_256])
def test_HS_14_exchanged_handles_open_and_seal_nothing_wrong(hsm: KeysHsm, kind: KeyType) -> None:
    mine, others = fresh(hsm, kind), fresh(hsm, kind)
    sealed = {key.hsm_id: hsm.encrypt(key, GCM, key.hsm_id, b"") for key in (mine, others)}
    exchange(hsm, mine, others)
    assert ending(lambda: hsm.decrypt(mine, GCM, sealed[others.hsm_id], b"")) == "CIPHERTEXT_INVALID"
    assert hsm.decrypt(others, GCM, sealed[others.hsm_id], b"") == others.hsm_id
    exchange(hsm, mine, others)
    written = hsm.encrypt(mine, GCM, b"m", b"")
    hsm.forget_handles()
    assert hsm.decrypt(mine, GCM, written, b"") == b"m"
    for key in (mine, others):
        hsm.destroy(key)


def test_HS_14_exchanged_handles_open_nothing_wrong_with_rsa(hsm: KeysHsm) -> None:
    mine, others = (fresh(hsm, KeyType.RSA_2048, KeyUsage.ENCRYPT) for _ in range(2))
    for key in (mine, others):
        assert ending(lambda: hsm.decrypt(key, EncryptionAlgorithm.RSA_OAEP_SHA1, bytes(256), b"")) != "ok"  # noqa: B023
    exchange(hsm, mine, others)
    before = hsm.sessions.run(lambda worker: dict(worker.handles))
    ending(lambda: hsm.decrypt(mine, EncryptionAlgorithm.RSA_OAEP_SHA1, bytes(256), b""))
    after = hsm.sessions.run(lambda worker: dict(worker.handles))
    assert after[bind(Purpose.KEY, mine)] == before[bind(Purpose.KEY, others)], "the wrong handle was not believed"
    for key in (mine, others):
        hsm.destroy(key)
