"""Whether a public key that the device gave us is one that a sound device can give (HS-21)."""

from __future__ import annotations

from functools import cache
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from broker.core.errors import Unavailable
from broker.core.kinds import KeyType
from broker.core.reasons import Reason

RSA_BITS: Final = {KeyType.RSA_2048: 2048, KeyType.RSA_3072: 3072, KeyType.RSA_4096: 4096}
CURVES: Final[dict[KeyType, type[ec.EllipticCurve]]] = {
    KeyType.EC_P256: ec.SECP256R1,
    KeyType.EC_P384: ec.SECP384R1,
    KeyType.EC_P521: ec.SECP521R1,
    KeyType.EC_SECP256K1: ec.SECP256K1,
}
_SMALL_PRIMES: Final = tuple(p for p in range(3, 168) if all(p % q for q in range(2, p)))


def check_public_key(key_type: KeyType, spki: bytes) -> None:
    """Return if the key is of this type and has no known weakness; else Unavailable ``HSM_FAULT``."""
    try:
        key = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm) as fault:
        raise _weak("it is not on its curve or not well-formed") from fault
    if key_type in RSA_BITS:
        _check_rsa(key, RSA_BITS[key_type])
    elif key_type in CURVES:
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, CURVES[key_type]):
            raise _weak("it is on another curve than was asked for")
    elif key_type is not KeyType.ED25519 or not isinstance(key, ed25519.Ed25519PublicKey):
        raise _weak("it is of another type than was asked for")


def _check_rsa(key: object, bits: int) -> None:
    if not isinstance(key, rsa.RSAPublicKey):
        raise _weak("it is of another type than was asked for")
    numbers = key.public_numbers()
    if numbers.e != 65537:
        raise _weak("its exponent is not 65537")
    if numbers.n.bit_length() != bits:
        raise _weak(f"its modulus does not have {bits} bits")
    if any(numbers.n % prime == 0 for prime in (2, *_SMALL_PRIMES)):
        raise _weak("its modulus has a small factor")
    if all(numbers.n % prime in _powers_of_65537(prime) for prime in _SMALL_PRIMES):
        raise _weak("it was made by a device with the ROCA defect (CVE-2017-15361)")


@cache
def _powers_of_65537(prime: int) -> frozenset[int]:
    """The residues that every modulus of the ROCA generator falls into, and a random one rarely does."""
    return frozenset(pow(65537, exponent, prime) for exponent in range(prime - 1))


def _weak(why: str) -> Unavailable:
    return Unavailable(
        Reason.HSM_FAULT, f"The HSM's public key is not sound: {why}; the key is not used. Check the device."
    )
