"""Through the shim every exportable key leaves SoftHSM as RFC 5649 has it, and nothing else about SoftHSM changes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pkcs11
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
from pkcs11 import Attribute, Mechanism, ObjectClass
from pkcs11 import KeyType as CkKeyType
from pkcs11 import exceptions as ck

from broker.core.errors import WrongState
from broker.core.kinds import EncryptionAlgorithm, KeyType, OaepHash
from broker.hsm.config import HsmConfig
from tests.contracts.hsm.keys import EXPORTABLE, Target, der_length, fresh, shared, spki_of
from tests.live.hsm.openssl import opened_by_openssl, public_key_by_openssl
from tests.servers.shim import HsmElsewhere, Shim, make_shim_token
from tests.servers.softhsm import KeysHsm, alone


@pytest.fixture(scope="module")
def target() -> Target:
    return Target()


def plaintext_of(hsm: HsmElsewhere, target: Target, kind: KeyType, folder: Path) -> tuple[bytes, bytes | None]:
    """A key's bytes, on which pyca and openssl agree, and the public key that the HSM gave for it."""
    key = shared(hsm, kind, exportable=True)
    blob = hsm.wrap(key, target.kek, OaepHash.SHA1, exact=True)
    plaintext = target.open(blob, OaepHash.SHA1)
    assert opened_by_openssl(target.private, blob, folder) == plaintext
    return plaintext, key.public_key


@pytest.mark.parametrize("kind", [kind for kind in EXPORTABLE if not kind.symmetric])
def test_a_private_key_is_strict_der_without_a_byte_too_many(
    exact_hsm: HsmElsewhere, target: Target, tmp_path: Path, kind: KeyType
) -> None:
    plaintext, public_key = plaintext_of(exact_hsm, target, kind, tmp_path)
    assert der_length(plaintext) == len(plaintext)
    assert spki_of(plaintext) == public_key
    assert public_key_by_openssl(plaintext) == public_key


@pytest.mark.parametrize("kind", [kind for kind in EXPORTABLE if kind.symmetric])
def test_a_secret_key_is_as_long_as_it_is(
    exact_hsm: HsmElsewhere, target: Target, tmp_path: Path, kind: KeyType
) -> None:
    plaintext, _ = plaintext_of(exact_hsm, target, kind, tmp_path)
    assert len(plaintext) * 8 == int(kind[4:])
    key = shared(exact_hsm, kind, exportable=True)
    ciphertext = exact_hsm.encrypt(key, EncryptionAlgorithm.AES_GCM, b"from the HSM", b"")
    assert AESGCM(plaintext).decrypt(ciphertext[:12], ciphertext[12:], b"") == b"from the HSM"


def test_every_rsa_key_is_exact(exact_hsm: HsmElsewhere, target: Target) -> None:
    assert_exact_as_often(exact_hsm, target, 3)


def assert_exact_as_often(exact_hsm: HsmElsewhere, target: Target, keys: int) -> None:
    for _ in range(keys):  # their lengths differ by the bytes that their parts begin with
        key = fresh(exact_hsm, KeyType.RSA_2048, exportable=True)
        plaintext = target.open(exact_hsm.wrap(key, target.kek, OaepHash.SHA1, exact=True), OaepHash.SHA1)
        assert spki_of(plaintext) == key.public_key
        exact_hsm.destroy(key)


def test_the_probe_tells_plain_softhsm_and_the_shim_apart(
    hsm: KeysHsm, exact_hsm: HsmElsewhere, target: Target
) -> None:
    plain, shimmed = hsm.report(), exact_hsm.report()
    assert (plain.exact_wrap, shimmed.exact_wrap) == (False, True)
    differing = {probe.name for probe in shimmed.probes} ^ {probe.name for probe in plain.probes}
    assert {name.split(" ec-")[0].split(" aes-")[0] for name in differing} == {"exact wrap"}, "no need to try each type"
    assert (plain.library, plain.key_types, plain.oaep_hashes) == (
        shimmed.library,
        shimmed.key_types,
        shimmed.oaep_hashes,
    )
    with pytest.raises(WrongState) as refusal:
        hsm.wrap(shared(hsm, KeyType.EC_P256, exportable=True), target.kek, OaepHash.SHA1, exact=True)
    assert refusal.value.reason == "WRAP_NOT_EXACT"
    assert all(way in refusal.value.message for way in ("ec-p384", "tolerates padding", "SoftHSM from 2.7.0"))


def _wrap_all_lengths(config: HsmConfig) -> None:
    """Secrets of 1 to 40 bytes and AES keys of every size, under wrapping keys of every size."""
    os.environ.update(config.environment)
    library = pkcs11.lib(str(config.module))
    token = library.get_token(token_label=config.token_label)
    with token.open(rw=True, user_pin=config.pin_file.read_text().strip()) as opened:
        session: Any = opened  # its type stub does not tell the classes of keys apart
        for size in (16, 24, 32):
            value = os.urandom(size)
            wrapper = session.create_object(_secret(CkKeyType.AES, value, {Attribute.WRAP: True}))
            for length in range(1, 41):
                secret = os.urandom(length)
                held = session.create_object(_secret(CkKeyType.GENERIC_SECRET, secret, {}))
                blob = wrapper.wrap_key(held, mechanism=Mechanism.AES_KEY_WRAP_PAD)
                assert blob == aes_key_wrap_with_padding(value, secret), (size, length)
        assert len(list(session.get_objects())) == 3 * 41, "the shim leaves nothing of its own"
        kept = session.create_object(_secret(CkKeyType.AES, os.urandom(32), {Attribute.EXTRACTABLE: False}))
        with pytest.raises(ck.KeyUnextractable):
            wrapper.wrap_key(kept, mechanism=Mechanism.AES_KEY_WRAP_PAD)
        with pytest.raises(
            ck.WrappingKeyHandleInvalid
        ):  # a wrapping key that may not be carried over cannot be made exact
            _wrap_by_a_kept_key(session, held)
    library.finalize()


def _wrap_by_a_kept_key(session: Any, held: Any) -> None:
    template = {Attribute.WRAP: True, Attribute.EXTRACTABLE: False}
    session.create_object(_secret(CkKeyType.AES, os.urandom(32), template)).wrap_key(
        held, mechanism=Mechanism.AES_KEY_WRAP_PAD
    )


def _secret(kind: CkKeyType, value: bytes, more: dict[Attribute, bool]) -> dict[Attribute, object]:
    return {
        Attribute.CLASS: ObjectClass.SECRET_KEY,
        Attribute.KEY_TYPE: kind,
        Attribute.VALUE: value,
        Attribute.TOKEN: False,
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: True,
        **more,
    }


def test_every_length_under_every_wrapping_key_is_what_pyca_makes(tmp_path: Path) -> None:
    alone(_wrap_all_lengths, make_shim_token(tmp_path / "token"))


def _start_and_look(config: HsmConfig) -> bool:
    hsm = KeysHsm(config)
    exact = hsm.report().exact_wrap
    hsm.close()
    return exact


def test_exactness_can_be_switched_off(tmp_path: Path) -> None:
    config = make_shim_token(tmp_path / "token")
    Shim(tmp_path / "token").obey("exact off")
    assert not alone(_start_and_look, config)
    Shim(tmp_path / "token").obey()
    assert alone(_start_and_look, config)
