"""A P-256 key in the HSM, where ``cryptography`` asks for a private key: its builders of certificates take it."""

from __future__ import annotations

from typing import NoReturn, Self

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.utils import Buffer

from broker.core import ports
from broker.core.kinds import SignatureAlgorithm
from broker.core.ports import KeyRef


class HsmKey(ec.EllipticCurvePrivateKey):
    """Signs by ES256 in the HSM, and raises what that refuses; there is nothing else that it could do.

    ``key`` is an EC P-256 key for signing with its public key; ValueError otherwise.
    """

    def __init__(self, hsm: ports.Hsm, key: KeyRef) -> None:
        self._hsm = hsm
        self._key = key
        self._public = p256(load_der_public_key(key.public_key or b""))

    @property
    def curve(self) -> ec.EllipticCurve:
        """P-256."""
        return self._public.curve

    @property
    def key_size(self) -> int:
        """In bits."""
        return self._public.key_size

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The other half, as the HSM gave it when the key was made."""
        return self._public

    def sign(self, data: Buffer, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """DER (RFC 3279 2.2.3) over SHA-256 of the data; ValueError for another algorithm."""
        digest = signature_algorithm.algorithm if isinstance(signature_algorithm, ec.ECDSA) else None
        if not isinstance(digest, hashes.SHA256):
            raise ValueError("this key signs by ECDSA with SHA-256 alone")  # noqa: TRY004 - a value, whatever its class
        [signature] = self._hsm.sign(self._key, SignatureAlgorithm.ES256, [bytes(data)])
        return signature

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> NoReturn:  # noqa: ARG002
        """Nothing: this key only signs."""
        raise _stays()

    def private_numbers(self) -> NoReturn:
        """Nothing: they never leave the HSM."""
        raise _stays()

    def private_bytes(self, encoding: object, format: object, encryption_algorithm: object) -> NoReturn:  # noqa: A002, ARG002
        """Nothing: they never leave the HSM."""
        raise _stays()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self


def p256(key: object) -> ec.EllipticCurvePublicKey:
    """The same, if it is an EC P-256 public key; ValueError."""
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("not an EC P-256 key")  # noqa: TRY004 - the value is wrong, whatever its class
    return key


def _stays() -> TypeError:
    return TypeError("a key in the HSM signs there, and does nothing else")
