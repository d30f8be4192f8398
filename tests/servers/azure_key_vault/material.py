"""Key material: which kinds there are, what may be done with each, and its public half as a JSON web key."""

from __future__ import annotations

import secrets

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from .encoding import encode
from .refusals import bad_parameter

Material = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | bytes

CURVES: dict[str, type[ec.EllipticCurve]] = {
    "P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1, "P-256K": ec.SECP256K1,
}  # fmt: skip
RSA_BITS = (2048, 3072, 4096)
OPERATIONS = {
    "RSA-HSM": ("encrypt", "decrypt", "sign", "verify", "wrapKey", "unwrapKey"),
    "EC-HSM": ("sign", "verify"),
    "oct-HSM": ("encrypt", "decrypt", "wrapKey", "unwrapKey"),
}


def curve_name(material: ec.EllipticCurvePrivateKey) -> str:
    """The curve's name as a JSON web key has it; BadParameter for one that is not held."""
    for name, curve in CURVES.items():
        if isinstance(material.curve, curve):
            return name
    raise bad_parameter(f"The curve {material.curve.name} is not supported.")


def public_members(material: Material) -> dict[str, str]:
    """The members of a JSON web key that are public; none for a symmetric key."""
    if isinstance(material, rsa.RSAPrivateKey):
        numbers = material.public_key().public_numbers()
        return {"n": _integer(numbers.n), "e": _integer(numbers.e)}
    if isinstance(material, ec.EllipticCurvePrivateKey):
        point = material.public_key().public_numbers()
        size = (material.curve.key_size + 7) // 8
        return {"crv": curve_name(material), "x": _integer(point.x, size), "y": _integer(point.y, size)}
    return {}


def public_key(material: Material) -> bytes | None:
    """SubjectPublicKeyInfo, DER; None for a symmetric key."""
    if isinstance(material, bytes):
        return None
    return material.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def another(material: Material) -> Material:
    """A new key of the same kind and size."""
    if isinstance(material, rsa.RSAPrivateKey):
        return rsa.generate_private_key(65537, material.key_size)
    if isinstance(material, ec.EllipticCurvePrivateKey):
        return ec.generate_private_key(material.curve)
    return secrets.token_bytes(len(material))


def check_operations(kty: str, asked: object) -> list[str]:
    """``asked`` as the key operations of such a key; all that it can do when None."""
    if asked is None:
        return list(OPERATIONS[kty])
    if not isinstance(asked, list) or any(not isinstance(each, str) for each in asked):
        raise bad_parameter("key_ops is not a list of strings.")
    if "import" in asked:
        raise bad_parameter("The key operation 'import' belongs to a key exchange key that was created here, alone.")
    if wrong := [each for each in asked if each not in OPERATIONS[kty]]:
        raise bad_parameter(f"The key operation {', '.join(wrong)} is not valid for {kty}.")
    if len(set(asked)) != len(asked):
        raise bad_parameter("key_ops names an operation twice.")
    return asked


def _integer(number: int, size: int | None = None) -> str:
    return encode(number.to_bytes(size or (number.bit_length() + 7) // 8, "big"))
