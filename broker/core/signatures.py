"""Which algorithm fits which key, and how a signature is checked without the HSM."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from broker.core.errors import InvalidRequest
from broker.core.kinds import KeyType, SignatureAlgorithm
from broker.core.reasons import Reason

RSA_TYPES = frozenset({KeyType.RSA_2048, KeyType.RSA_3072, KeyType.RSA_4096})
RSA_ALGORITHMS = (
    SignatureAlgorithm.PS256,
    SignatureAlgorithm.PS384,
    SignatureAlgorithm.PS512,
    SignatureAlgorithm.RS256,
    SignatureAlgorithm.RS384,
    SignatureAlgorithm.RS512,
)
ALGORITHMS: dict[KeyType, tuple[SignatureAlgorithm, ...]] = {
    **dict.fromkeys(RSA_TYPES, RSA_ALGORITHMS),
    KeyType.EC_P256: (SignatureAlgorithm.ES256,),
    KeyType.EC_P384: (SignatureAlgorithm.ES384,),
    KeyType.EC_P521: (SignatureAlgorithm.ES512,),
    KeyType.EC_SECP256K1: (SignatureAlgorithm.ES256K,),
    KeyType.ED25519: (SignatureAlgorithm.EDDSA,),
    KeyType.AES_128: (),
    KeyType.AES_256: (),
}
"""What each type can sign with; the first is its default."""

_SHA = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
_PUBLIC = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


def choose(key_type: KeyType, asked: SignatureAlgorithm | None) -> SignatureAlgorithm:
    """The algorithm asked for if it fits the key, or the key's default; InvalidRequest ``ALGORITHM_MISMATCH``."""
    fitting = ALGORITHMS[key_type]
    if asked is None and fitting:
        return fitting[0]
    if asked in fitting:
        return asked
    names = ", ".join(fitting) or "none: it does not sign"
    raise InvalidRequest(
        Reason.ALGORITHM_MISMATCH, f"The algorithm does not fit a key of type {key_type}; it takes {names}."
    )


def digest_of(algorithm: SignatureAlgorithm) -> hashes.HashAlgorithm | None:
    """The hash an algorithm signs; None for EdDSA, which takes the message whole (RFC 8032)."""
    return None if algorithm is SignatureAlgorithm.EDDSA else _SHA[algorithm.value[2:5]]


def verify(
    public_key: bytes, algorithm: SignatureAlgorithm, data: bytes, signature: bytes, *, prehashed: bool = False
) -> bool:
    """True if ``signature`` (ECDSA as DER) over ``data`` holds under a SubjectPublicKeyInfo DER.

    ``data`` is the message, or its digest when ``prehashed``. The algorithm must be one of ``ALGORITHMS`` for the key.
    """
    key: Any = load_public_key(public_key)
    try:
        key.verify(signature, data, *_HOW[algorithm, prehashed])
    except InvalidSignature:
        return False
    return True


@lru_cache(maxsize=4096)
def load_public_key(spki: bytes) -> _PUBLIC:
    """A SubjectPublicKeyInfo DER as an object; parsing costs more than verifying, so the last ones are kept."""
    key = serialization.load_der_public_key(spki)
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        raise TypeError("not a public key of a type the broker makes")
    return key


def _how(algorithm: SignatureAlgorithm, *, prehashed: bool) -> tuple[object, ...]:
    """What the key's ``verify`` is given beside signature and data; made once, as it costs as much as a look-up."""
    digest = digest_of(algorithm)
    if digest is None:
        return ()
    hashed = Prehashed(digest) if prehashed else digest
    if algorithm.startswith("ES"):
        return (ec.ECDSA(hashed),)
    if algorithm.startswith("PS"):
        return padding.PSS(padding.MGF1(digest), digest.digest_size), hashed
    return padding.PKCS1v15(), hashed


_HOW = {(one, prehashed): _how(one, prehashed=prehashed) for one in SignatureAlgorithm for prehashed in (False, True)}
