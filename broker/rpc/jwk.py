"""A public key as PEM and as a JSON Web Key (RFC 7517, 7518, 8037, 8812) with its thumbprint (RFC 7638)."""

from __future__ import annotations

import base64
import hashlib
import json

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from broker.core.kinds import KeyUsage

CURVES = {
    "secp256r1": ("P-256", "ES256"),
    "secp384r1": ("P-384", "ES384"),
    "secp521r1": ("P-521", "ES512"),
    "secp256k1": ("secp256k1", "ES256K"),
}


def pem(public_key: bytes) -> str:
    """SubjectPublicKeyInfo DER as PEM (RFC 7468)."""
    key = load_der_public_key(public_key)
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def jwk(public_key: bytes, usage: KeyUsage) -> str:
    """SubjectPublicKeyInfo DER as a JWK in JSON, with ``kid`` and ``use``, and ``alg`` where the curve fixes it."""
    required, algorithm = _required(public_key)
    canonical = json.dumps(required, sort_keys=True, separators=(",", ":")).encode("ascii")
    members = {**required, "kid": _text(hashlib.sha256(canonical).digest())}
    members["use"] = "sig" if usage is KeyUsage.SIGN else "enc"
    if algorithm and usage is KeyUsage.SIGN:
        members["alg"] = algorithm
    return json.dumps(members, sort_keys=True, separators=(",", ":"))


def _required(public_key: bytes) -> tuple[dict[str, str], str]:
    """The members that the thumbprint covers, and the one algorithm of the key ("" for RSA, which has several)."""
    key = load_der_public_key(public_key)
    if isinstance(key, RSAPublicKey):
        numbers = key.public_numbers()
        return {"kty": "RSA", "n": _number(numbers.n), "e": _number(numbers.e)}, ""
    if isinstance(key, EllipticCurvePublicKey):
        curve, algorithm = CURVES[key.curve.name]
        size = (key.key_size + 7) // 8
        point = key.public_numbers()
        x, y = (_text(value.to_bytes(size, "big")) for value in (point.x, point.y))
        return {"kty": "EC", "crv": curve, "x": x, "y": y}, algorithm
    if isinstance(key, Ed25519PublicKey):
        return {"kty": "OKP", "crv": "Ed25519", "x": _text(key.public_bytes_raw())}, "EdDSA"
    raise TypeError(f"no JWK for {type(key).__name__}")


def _number(value: int) -> str:
    return _text(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def _text(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode("ascii")
