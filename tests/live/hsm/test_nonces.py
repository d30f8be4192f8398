"""HS-12: the nonces of ECDSA signatures, computed from a key that the test exported."""

from __future__ import annotations

import hashlib
import math
from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_private_key

from broker.core.kinds import KeyType, OaepHash, SignatureAlgorithm
from tests.contracts.hsm.keys import Target, der_length, shared
from tests.servers.softhsm import KeysHsm

_CASES: Final = {
    KeyType.EC_P256: (
        SignatureAlgorithm.ES256,
        0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
        hashlib.sha256,
    ),
    KeyType.EC_P521: (
        SignatureAlgorithm.ES512,
        (1 << 521) - 0x5AE79787C40D069948033FEB708F65A2FC44A36477663B851449048E16EC79BF7,
        hashlib.sha512,
    ),
}


def _nonces(hsm: KeysHsm, kind: KeyType, number: int) -> list[int]:
    algorithm, order, hashed = _CASES[kind]
    key, target = shared(hsm, kind, exportable=True), Target()
    pkcs8 = target.open(hsm.wrap(key, target.kek, OaepHash.SHA1, exact=False), OaepHash.SHA1)
    private = load_der_private_key(pkcs8[: der_length(pkcs8)], None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    secret = private.private_numbers().private_value
    message = b"the same message each time"
    digest = int.from_bytes(hashed(message).digest(), "big")
    nonces = []
    for _ in range(number // 100):
        for signature in hsm.sign(key, algorithm, [message] * 100):
            r, s = decode_dss_signature(signature)
            nonces.append((digest + r * secret) * pow(s, -1, order) % order)
    return nonces


def _assert_unbiased(nonces: list[int], kind: KeyType) -> None:
    """No nonce twice (up to its sign, which a signature does not show), and none of its 9 top bits leaning."""
    order = _CASES[kind][1]
    assert len({min(nonce, order - nonce) for nonce in nonces}) == len(nonces)
    limit = 6 * math.sqrt(len(nonces)) / 2  # six standard deviations
    for bit in range(1, 10):
        ones = sum(nonce * 2**bit // order & 1 for nonce in nonces)
        assert abs(ones - len(nonces) / 2) < limit, f"top bit {bit}"


@pytest.mark.parametrize("kind", _CASES)
def test_HS_12_nonces_are_not_biased(hsm: KeysHsm, kind: KeyType) -> None:
    _assert_unbiased(_nonces(hsm, kind, 1000), kind)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", _CASES)
def test_HS_12_a_hundred_thousand_nonces_are_not_biased(hsm: KeysHsm, kind: KeyType) -> None:
    _assert_unbiased(_nonces(hsm, kind, 100_000), kind)
