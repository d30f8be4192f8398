"""Key types, operations and public keys as Azure writes them (JSON web keys, RFC 7517)."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.core.errors import InvalidRequest
from broker.core.kinds import EncryptionAlgorithm, KeyType, KeyUsage
from broker.core.reasons import Reason
from broker.targets.azure_key_vault.clouds import Tier

CURVES = MappingProxyType({
    KeyType.EC_P256: "P-256", KeyType.EC_P384: "P-384", KeyType.EC_P521: "P-521", KeyType.EC_SECP256K1: "P-256K",
})  # fmt: skip

_CURVES: MappingProxyType[str, ec.EllipticCurve] = MappingProxyType({
    "P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1(), "P-256K": ec.SECP256K1(),
})  # fmt: skip

SIGNING = ("sign", "verify")
ENCRYPTING = ("encrypt", "decrypt", "wrapKey", "unwrapKey")

OAEP = MappingProxyType({
    EncryptionAlgorithm.RSA_OAEP_SHA1: "RSA-OAEP", EncryptionAlgorithm.RSA_OAEP_SHA256: "RSA-OAEP-256",
})  # fmt: skip


def kty(key_type: KeyType) -> str:
    """How Azure calls a key of this type that its HSM protects."""
    if key_type.symmetric:
        return "oct-HSM"
    return "EC-HSM" if key_type in CURVES else "RSA-HSM"


def operations(usage: KeyUsage) -> tuple[str, ...]:
    """All that a key of this usage may do; never ``import``, which makes a KEK of it."""
    return SIGNING if usage is KeyUsage.SIGN else ENCRYPTING


def check_type(key_type: KeyType, usage: KeyUsage, tier: Tier) -> None:
    """Return if such a key can be brought to this tier; else InvalidRequest ``KEY_TYPE_UNSUPPORTED``."""
    known = "rsa-2048, rsa-3072, rsa-4096, ec-p256, ec-p384, ec-p521, ec-secp256k1"
    if key_type is KeyType.ED25519:
        raise _unsupported(f"A key of type {key_type} cannot be imported, since Azure knows none; it takes {known}.")
    if key_type.symmetric and tier != "managed-hsm":
        raise _unsupported(
            f"A key of type {key_type} can only be imported to a Managed HSM; a Key Vault takes {known}."
        )
    if not key_type.startswith("rsa") and (usage is KeyUsage.ENCRYPT) != key_type.symmetric:
        raise _unsupported(f"A key of type {key_type} cannot be imported to {usage}.")


def _unsupported(message: str) -> InvalidRequest:
    return InvalidRequest(Reason.KEY_TYPE_UNSUPPORTED, message)


def public_key(jwk: Any) -> bytes | None:
    """SubjectPublicKeyInfo DER of a JSON web key; None for a symmetric one; ValueError when it is no key."""
    family, crv = text(jwk.kty).removesuffix("-HSM"), text(jwk.crv)
    if family == "oct":
        return None
    if family == "RSA":
        numbers = rsa.RSAPublicNumbers(_number(jwk.e), _number(jwk.n))
        return numbers.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    curve = _CURVES.get("P-256K" if crv == "SECP256K1" else crv)
    if family != "EC" or curve is None:
        raise ValueError("a key of a type that is not known")
    point = ec.EllipticCurvePublicNumbers(_number(jwk.x), _number(jwk.y), curve)
    return point.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def text(word: object) -> str:
    """A word of the client's, which gives some as enumerations and others as they came."""
    return str(getattr(word, "value", word))


def _number(content: object) -> int:
    if not isinstance(content, bytes) or not 0 < len(content) <= 1024:
        raise ValueError("a number is missing")
    return int.from_bytes(content, "big")
