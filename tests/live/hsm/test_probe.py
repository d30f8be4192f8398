"""What the start-up probe says of SoftHSM 2.6.1, and what it refuses to start with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pkcs11
import pytest
from pkcs11 import Attribute, MechanismFlag, ObjectClass
from pkcs11 import KeyType as CkKeyType
from pkcs11 import exceptions as ck

from broker.core.errors import BrokerError
from broker.core.kinds import EncryptionAlgorithm, KeyType, OaepHash, Purpose, SignatureAlgorithm
from broker.hsm.binding import bind
from broker.hsm.config import HsmConfig
from broker.hsm.sessions import Worker
from tests.contracts.hsm.keys import Target, der_length, fresh, shared, unmade
from tests.fakes.refusals import ending
from tests.servers.modules import softhsm_but
from tests.servers.softhsm import KeysHsm, alone, make_token

GCM = EncryptionAlgorithm.AES_GCM


def test_the_zero_tail_of_softhsm_is_detected(hsm: KeysHsm) -> None:
    report = hsm.report()
    assert report.library.endswith("2.6"), "written for SoftHSM 2.6.1; look at what the newer one does"
    probes = {probe.name: probe for probe in report.probes}
    assert not report.exact_wrap
    assert not probes["key wrap AES_KEY_WRAP_PAD"].passed
    assert "9 bytes come back as 16" in probes["key wrap AES_KEY_WRAP_PAD"].detail
    assert report.oaep_hashes == (OaepHash.SHA1,)
    assert not probes["OAEP sha256"].passed
    assert not report.one_call_wrap
    assert report.key_types == tuple(KeyType)
    tails = {kind: not probes[f"exact wrap {kind}"].passed for kind in KeyType if kind[:2] in {"ec", "ae"}}
    assert [kind for kind, tail in tails.items() if tail] == [KeyType.EC_P256, KeyType.EC_P521]


def test_the_tail_that_the_probe_tells_of_is_really_there(hsm: KeysHsm) -> None:
    target = Target()
    for kind, tail in ((KeyType.EC_P256, 5), (KeyType.EC_P521, 6), (KeyType.EC_P384, 0)):
        plaintext = target.open(
            hsm.wrap(shared(hsm, kind, exportable=True), target.kek, OaepHash.SHA1, exact=False), OaepHash.SHA1
        )
        assert len(plaintext) - der_length(plaintext) == tail


def test_HS_01_wrap_and_decrypt_never_meet(hsm: KeysHsm) -> None:
    def roles(worker: Worker) -> list[dict[Attribute, Any]]:
        asked = [Attribute.WRAP, Attribute.UNWRAP, Attribute.DECRYPT, Attribute.SIGN, Attribute.DERIVE]
        return [
            thing.get_attributes(asked)
            for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.SECRET_KEY)
            for thing in worker.session.get_objects({Attribute.CLASS: kind})
        ]

    for kind in KeyType:
        shared(hsm, kind)
    found = hsm.locked(roles)
    assert len(found) >= len(KeyType)
    for key in found:
        assert not any(key.get(role) for role in (Attribute.WRAP, Attribute.UNWRAP, Attribute.DERIVE))
        assert bool(key.get(Attribute.SIGN)) != bool(key.get(Attribute.DECRYPT))


def test_HS_04_attributes_cannot_be_loosened_nor_copied_away(hsm: KeysHsm) -> None:
    key = shared(hsm, KeyType.EC_P256)

    def loosen(worker: Worker) -> None:
        secret = hsm.finder.secret_half(worker, bind(Purpose.KEY, key))
        for attribute, value in ((Attribute.EXTRACTABLE, True), (Attribute.SENSITIVE, False)):
            with pytest.raises(ck.PKCS11Error):
                secret[attribute] = value
        private = {Attribute.ID: key.hsm_id, Attribute.CLASS: ObjectClass.PRIVATE_KEY}
        (same,) = worker.session.get_objects(private)
        with pytest.raises(ck.PKCS11Error):
            same.copy({Attribute.TOKEN: False, Attribute.EXTRACTABLE: True})

    hsm.locked(loosen)


def test_HS_04_a_key_that_was_given_another_role_is_not_exported(hsm: KeysHsm) -> None:
    key = fresh(hsm, KeyType.AES_256, exportable=True)

    def widen(worker: Worker) -> None:
        hsm.finder.secret_half(worker, bind(Purpose.KEY, key))[Attribute.WRAP] = True

    hsm.locked(widen)
    with pytest.raises(BrokerError) as refusal:
        hsm.wrap(key, Target().kek, OaepHash.SHA1, exact=False)
    assert refusal.value.reason == "HSM_KEY_CONFLICT"
    hsm.destroy(key)


_LAX = """
static unsigned long (*real_one)(unsigned long, unsigned long, struct attribute *, unsigned long);
/* Says that each change was made. */
static unsigned long instead(unsigned long session, unsigned long object, struct attribute *wanted,
                             unsigned long count) { return 0; }
"""
_SET_ATTRIBUTE_VALUE = 26


def test_HS_23_a_token_that_lets_something_forbidden_pass_is_refused(tmp_path: Path) -> None:
    config = make_token(tmp_path / "token")
    lax = config.model_copy(update={"module": softhsm_but(tmp_path, _SET_ATTRIBUTE_VALUE, _LAX)})
    assert [alone(_start, each) for each in (config, lax)] == ["started", "HSM_NOT_ENFORCING"]


def test_half_a_pair_left_by_a_crash_is_replaced_by_a_whole_one(hsm: KeysHsm) -> None:
    key = fresh(hsm, KeyType.EC_P256)
    hsm.locked(lambda worker: hsm.finder.secret_half(worker, bind(Purpose.KEY, key)).destroy())  # its private one
    again = hsm.generate(key, exportable=False)
    assert again != key.public_key
    assert hsm.public_key(key) == again
    hsm.destroy(key)


def _plant_and_start(folder: Path) -> dict[str, list[str]]:
    """What a start and a use tell of each key planted in the token behind the broker's back."""
    config = make_token(folder)
    flags = {
        "wraps and decrypts": MechanismFlag.WRAP | MechanismFlag.DECRYPT | MechanismFlag.ENCRYPT,
        "derives": MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT | MechanismFlag.DERIVE,
        "unwraps": MechanismFlag.DECRYPT | MechanismFlag.ENCRYPT | MechanismFlag.UNWRAP,
        "two purposes": MechanismFlag.SIGN | MechanismFlag.DECRYPT,
    }
    told: dict[str, list[str]] = {}
    for what, capabilities in flags.items():
        hsm = KeysHsm(config)
        planted = bytes([len(told)]) * 16

        def plant(worker: Worker, name: bytes = planted, roles: MechanismFlag = capabilities) -> Any:
            return worker.session.generate_key(
                CkKeyType.AES, 256, id=name, label="broker:key:tests/1", store=True, capabilities=roles
            )

        hsm.sessions.run(plant)
        hsm.close()
        hsm = KeysHsm(config)
        (probe,) = [one for one in hsm.report().probes if one.name == "objects"]
        use = unmade(KeyType.AES_256, hsm_id=planted)
        told[what] = [probe.detail, ending(lambda hsm=hsm, use=use: hsm.encrypt(use, GCM, b"m", b""))]  # type: ignore[misc]
        hsm.close()
        _remove(config, planted)
    return told


def _start(config: HsmConfig) -> str:
    try:
        KeysHsm(config).close()
    except BrokerError as refusal:
        return refusal.reason
    return "started"


def _remove(config: HsmConfig, hsm_id: bytes) -> None:
    """Take an object out with the bare binding, as an administrator's own tool would."""
    library = pkcs11.lib(str(config.module))
    token = library.get_token(token_label=config.token_label)
    with token.open(rw=True, user_pin=config.pin_file.read_text().strip()) as session:
        for thing in session.get_objects({Attribute.ID: hsm_id}):
            thing.destroy()
    library.finalize()


def test_HS_01_a_planted_key_with_conflicting_roles_is_told_of_and_never_used(tmp_path: Path) -> None:
    told = alone(_plant_and_start, tmp_path / "token")
    detail = "1 objects with a label of the broker are not as it makes keys and are not used: broker:key:tests/1."
    two = told.pop("two purposes")
    assert two == [detail, "KEY_NOT_THIS"]
    assert set(map(tuple, told.values())) == {(detail, "HSM_KEY_CONFLICT")}


def _plant_own_and_start(folder: Path) -> str:
    config = make_token(folder)
    hsm = KeysHsm(config)
    roles = MechanismFlag.DECRYPT | MechanismFlag.ENCRYPT | MechanismFlag.WRAP

    def plant(worker: Worker) -> Any:
        named = {"id": b"broker/rows/0001", "label": "broker:rows:"}
        return worker.session.generate_key(CkKeyType.AES, 256, **named, store=True, capabilities=roles)

    hsm.sessions.run(plant)
    hsm.close()
    return _start(config)


def test_HS_01_a_key_of_the_brokers_own_with_conflicting_roles_stops_the_start(tmp_path: Path) -> None:
    assert alone(_plant_own_and_start, tmp_path / "token") == "HSM_KEY_CONFLICT"


def test_HS_21_a_fresh_key_signs_and_is_on_its_curve(hsm: KeysHsm) -> None:
    key = fresh(hsm, KeyType.EC_SECP256K1)
    assert hsm.sign(key, SignatureAlgorithm.ES256K, [b"m"])
    hsm.destroy(key)
