"""The library's builders take a key that signs elsewhere, raise what that refuses, and get nothing else from it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from broker import setup
from broker.core.errors import NotFound
from broker.core.kinds import KeyType, KeyUsage
from broker.core.operators.authority import Authority
from broker.core.operators.hsm_key import HsmKey
from broker.core.ports import KeyRef
from tests.fakes.calls import Clock
from tests.fakes.refusals import refused
from tests.fakes.signer import Signer

NOW = Clock()()


@pytest.fixture
def signer() -> Signer:
    return Signer()


@pytest.fixture
def key(signer: Signer) -> HsmKey:
    ref = KeyRef(hsm_id=b"k" * 16, type=KeyType.EC_P256, usage=KeyUsage.SIGN, public_key=None, name="")
    spki = signer.generate(ref, exportable=False)
    return HsmKey(signer.hsm, KeyRef(hsm_id=b"k" * 16, type=ref.type, usage=ref.usage, public_key=spki, name=""))


def test_it_signs_in_the_hsm(signer: Signer, key: HsmKey) -> None:
    signature = key.sign(memoryview(b"message"), ec.ECDSA(SHA256()))
    assert signer.signed == [b"message"]
    key.public_key().verify(signature, b"message", ec.ECDSA(SHA256()))
    with pytest.raises(InvalidSignature):
        key.public_key().verify(signature, b"another", ec.ECDSA(SHA256()))
    assert (key.key_size, key.curve.name) == (256, "secp256r1")


def test_what_the_hsm_refuses_comes_through_the_builder_as_it_is(signer: Signer) -> None:
    ref, pem = Authority.create(signer.hsm, b"operator-ca-0001", "Operators", NOW)
    authority = Authority(signer.hsm, ref, pem)
    signer.keys.clear()
    _, csr = setup.make_request()
    refused(lambda: authority.client(csr, "spiffe://broker/operator/a", NOW, timedelta(hours=1)), NotFound)


@pytest.mark.parametrize("algorithm", [ec.ECDSA(SHA384()), SHA256()])
def test_it_signs_by_no_other_algorithm(signer: Signer, key: HsmKey, algorithm: Any) -> None:
    with pytest.raises(ValueError, match="SHA-256 alone"):
        key.sign(b"message", algorithm)
    assert signer.signed == []


ASKED: dict[str, Callable[[HsmKey], object]] = {
    "bytes": lambda key: key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
    "numbers": lambda key: key.private_numbers(),
    "exchange": lambda key: key.exchange(ec.ECDH(), key.public_key()),
}


@pytest.mark.parametrize("what", ASKED)
def test_it_gives_nothing_else(key: HsmKey, what: str) -> None:
    with pytest.raises(TypeError, match="signs there"):
        ASKED[what](key)


def test_a_copy_is_the_same_key(key: HsmKey) -> None:
    assert copy.copy(key) is key
    assert copy.deepcopy(key) is key
