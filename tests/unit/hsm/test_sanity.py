"""HS-21: public keys that no sound device gives."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.core.errors import Unavailable
from broker.core.kinds import KeyType
from broker.hsm.sanity import check_public_key
from tests.fakes.refusals import refused

_PRIMES = [p for p in range(2, 168) if all(p % q for q in range(2, p))]


def _spki(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _rsa(modulus: int, exponent: int = 65537) -> bytes:
    return _spki(rsa.RSAPublicNumbers(exponent, modulus).public_key())


def _sound_modulus(bits: int = 2048) -> int:
    return rsa.generate_private_key(65537, bits).public_key().public_numbers().n


def _roca_modulus() -> int:
    """2048 bits with the fingerprint of CVE-2017-15361: a power of 65537 modulo each small prime."""
    primorial = 1
    for prime in _PRIMES:
        primorial *= prime
    residue = pow(65537, 123456789, primorial)
    start = (1 << 2047) // primorial + 1
    return start * primorial + residue


def _fault(kind: KeyType, spki: bytes) -> str:
    return refused(lambda: check_public_key(kind, spki), Unavailable, "HSM_FAULT").message


def test_HS_21_sound_keys_pass() -> None:
    check_public_key(KeyType.RSA_2048, _rsa(_sound_modulus()))
    check_public_key(KeyType.EC_P521, _spki(ec.generate_private_key(ec.SECP521R1()).public_key()))
    check_public_key(KeyType.ED25519, _spki(ed25519.Ed25519PrivateKey.generate().public_key()))


def test_HS_21_weak_rsa_keys_are_named() -> None:
    sound = _sound_modulus()
    assert "exponent" in _fault(KeyType.RSA_2048, _rsa(sound, exponent=3))
    assert "2048 bits" in _fault(KeyType.RSA_2048, _rsa(_sound_modulus(1024)))
    assert "small factor" in _fault(KeyType.RSA_2048, _rsa(167 * (sound // 167)))
    assert "ROCA" in _fault(KeyType.RSA_2048, _rsa(_roca_modulus()))


def test_HS_21_a_key_of_another_kind_is_refused() -> None:
    p256 = _spki(ec.generate_private_key(ec.SECP256R1()).public_key())
    assert "curve" in _fault(KeyType.EC_SECP256K1, p256)
    assert "type" in _fault(KeyType.RSA_2048, p256)
    assert "type" in _fault(KeyType.ED25519, p256)
    assert "type" in _fault(KeyType.AES_256, p256)


def test_HS_21_a_point_off_the_curve_is_refused() -> None:
    off = bytearray(_spki(ec.generate_private_key(ec.SECP256R1()).public_key()))
    off[-1] ^= 1
    assert "curve" in _fault(KeyType.EC_P256, bytes(off))
    assert "curve" in _fault(KeyType.EC_P256, b"")
