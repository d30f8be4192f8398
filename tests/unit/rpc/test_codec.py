"""Values between the wire and the core."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta
from enum import Enum

import pytest
from broker_api.v1 import keys_pb2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from google.protobuf.duration_pb2 import Duration

from broker.core.errors import InvalidRequest
from broker.core.kinds import KeyType, KeyUsage, SignatureAlgorithm
from broker.rpc import codec
from broker.rpc.jwk import jwk, pem

ALL = {name: value for name, value in vars(codec).items() if isinstance(value, codec.Names)}


@pytest.mark.parametrize("names", ALL.values(), ids=ALL.keys())
def test_every_enum_goes_both_ways(names: codec.Names[Enum]) -> None:
    assert names.optional(0) is None
    assert list(names)
    for member in names:
        number = names.wire(member)
        assert names.required(number, "x") is names.optional(number) is member
    with pytest.raises(InvalidRequest, match="The field x is not set"):
        names.required(0, "x")


def test_names_that_only_one_side_has_stop_the_start() -> None:
    with pytest.raises(ValueError, match="do not have the same names"):
        codec.Names(keys_pb2.KeyType, KeyUsage)
    assert codec.KEY_TYPE.wire(KeyType.EC_P256) == keys_pb2.KEY_TYPE_EC_P256


@pytest.mark.parametrize(
    ("delay", "expected"), [(None, None), (1, timedelta(seconds=1)), (366 * 86400, timedelta(days=366))]
)
def test_durations_within_bounds(delay: int | None, expected: timedelta | None) -> None:
    request = keys_pb2.ScheduleKeyDestructionRequest(delay=None if delay is None else Duration(seconds=delay))
    assert codec.duration(request, "delay") == expected


@pytest.mark.parametrize(
    ("seconds", "nanos"), [(0, 0), (-1, 0), (366 * 86400 + 1, 0), (2**62, 0), (-(2**62), 0), (1, 1), (1, -1), (0, 5)]
)
def test_durations_out_of_bounds_are_refused(seconds: int, nanos: int) -> None:
    request = keys_pb2.ScheduleKeyDestructionRequest(delay=Duration(seconds=seconds, nanos=nanos))
    with pytest.raises(InvalidRequest) as refused:
        codec.duration(request, "delay")
    assert refused.value.reason == "DURATION_INVALID"


def test_timestamps_keep_microseconds() -> None:
    moment = datetime(2026, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
    stamp = codec.timestamp(moment)
    assert stamp is not None
    assert stamp.ToDatetime(tzinfo=UTC) == moment
    assert codec.timestamp(None) is None


@pytest.mark.parametrize("number", [-1, -(2**31)])
def test_negative_versions_are_refused(number: int) -> None:
    with pytest.raises(InvalidRequest):
        codec.version(number)


CURVES: list[tuple[ec.EllipticCurve, SignatureAlgorithm, str]] = [
    (ec.SECP256R1(), SignatureAlgorithm.ES256, "P-256"),
    (ec.SECP384R1(), SignatureAlgorithm.ES384, "P-384"),
    (ec.SECP521R1(), SignatureAlgorithm.ES512, "P-521"),
    (ec.SECP256K1(), SignatureAlgorithm.ES256K, "secp256k1"),
]


@pytest.mark.parametrize(("curve", "algorithm", "_crv"), CURVES)
def test_ecdsa_goes_both_ways(curve: ec.EllipticCurve, algorithm: SignatureAlgorithm, _crv: str) -> None:
    key = ec.generate_private_key(curve)
    for message in (b"a", b"b", b"c"):
        der = key.sign(message, ec.ECDSA(hashes.SHA256()))
        jose = codec.jose_from_der(der, algorithm)
        assert len(jose) == 2 * codec.SCALAR_BYTES[algorithm]
        assert codec.der_from_jose(jose, algorithm) == der
        assert codec.der_from_jose(jose, None) == der


def test_a_small_number_keeps_its_zeros() -> None:
    der = encode_dss_signature(1, 2)
    jose = codec.jose_from_der(der, SignatureAlgorithm.ES256)
    assert jose == bytes(31) + b"\x01" + bytes(31) + b"\x02"
    assert codec.der_from_jose(jose, SignatureAlgorithm.ES256) == der


@pytest.mark.parametrize("algorithm", [None, SignatureAlgorithm.ES256, SignatureAlgorithm.ES384])
@pytest.mark.parametrize("length", [0, 1, 63, 65, 66, 95, 97, 131, 133, 1024])
def test_jose_signatures_of_a_wrong_length_are_refused(algorithm: SignatureAlgorithm | None, length: int) -> None:
    with pytest.raises(InvalidRequest) as refused:
        codec.der_from_jose(b"\x01" * length, algorithm)
    assert refused.value.reason == "SIGNATURE_ENCODING"


@pytest.mark.parametrize("size", [48, 66])
def test_a_signature_padded_to_a_longer_curves_length_is_refused(size: int) -> None:
    padded = (7).to_bytes(size, "big") + (2**255).to_bytes(size, "big")
    with pytest.raises(InvalidRequest):
        codec.der_from_jose(padded, None)


@pytest.mark.parametrize("algorithm", [SignatureAlgorithm.RS256, SignatureAlgorithm.EDDSA])
def test_signatures_with_one_form_are_left_alone(algorithm: SignatureAlgorithm) -> None:
    assert codec.jose_from_der(b"any", algorithm) == b"any"
    assert codec.der_from_jose(b"any", algorithm) == b"any"


def spki(key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def number(text: str) -> int:
    return int.from_bytes(base64.urlsafe_b64decode(text + "=="), "big")


def test_the_thumbprint_is_that_of_rfc_7638_3_1() -> None:
    modulus = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknj"
        "hMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQv"
        "RL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnq"
        "DKgw"
    )
    key = rsa.RSAPublicNumbers(e=65537, n=number(modulus)).public_key()
    made = json.loads(jwk(spki(key), KeyUsage.SIGN))
    assert made == {
        "kty": "RSA",
        "n": modulus,
        "e": "AQAB",
        "kid": "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs",
        "use": "sig",
    }


@pytest.mark.parametrize(("curve", "algorithm", "crv"), CURVES)
def test_ec_keys_as_jwk(curve: ec.EllipticCurve, algorithm: SignatureAlgorithm, crv: str) -> None:
    for _ in range(20):  # coordinates with leading zeros come up now and then, and must keep them
        key = ec.generate_private_key(curve).public_key()
        made = json.loads(jwk(spki(key), KeyUsage.SIGN))
        assert (made["kty"], made["crv"], made["alg"], made["use"]) == ("EC", crv, algorithm.value, "sig")
        assert (number(made["x"]), number(made["y"])) == (key.public_numbers().x, key.public_numbers().y)
        assert len(made["x"]) == len(made["y"]) == -(-8 * ((key.key_size + 7) // 8) // 6)
        canonical = f'{{"crv":"{crv}","kty":"EC","x":"{made["x"]}","y":"{made["y"]}"}}'
        thumbprint = base64.urlsafe_b64encode(hashlib.sha256(canonical.encode()).digest()).rstrip(b"=").decode()
        assert made["kid"] == thumbprint


def test_ed25519_and_rsa_for_encryption_as_jwk() -> None:
    edwards = ed25519.Ed25519PrivateKey.generate().public_key()
    made = json.loads(jwk(spki(edwards), KeyUsage.SIGN))
    assert (made["kty"], made["crv"], made["alg"]) == ("OKP", "Ed25519", "EdDSA")
    private = rsa.generate_private_key(65537, 2048)
    made = json.loads(jwk(spki(private.public_key()), KeyUsage.ENCRYPT))
    assert made["use"] == "enc"
    assert "alg" not in made
    assert load_pem_public_key(pem(spki(private.public_key())).encode()) == private.public_key()
