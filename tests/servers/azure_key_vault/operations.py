"""Using a key: sign, verify, encrypt, decrypt, wrapKey, unwrapKey, by the names of RFC 7518."""

from __future__ import annotations

import secrets
from typing import Any

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    Prehashed,
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from .encoding import decode, encode, members
from .material import CURVES, Material
from .refusals import bad_parameter, forbidden
from .shelf import KeyVersion

_HASHES: dict[str, hashes.HashAlgorithm] = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
_ECDSA = {
    "ES256": ("P-256", hashes.SHA256()), "ES384": ("P-384", hashes.SHA384()), "ES512": ("P-521", hashes.SHA512()),
    "ES256K": ("P-256K", hashes.SHA256()),
}  # fmt: skip
_OAEP = {"RSA-OAEP": hashes.SHA1(), "RSA-OAEP-256": hashes.SHA256()}  # noqa: S303 (RFC 7518's RSA-OAEP is SHA-1)
_AES = {"A128": 16, "A192": 24, "A256": 32}
_PROTECTING = {"sign", "encrypt", "wrapKey"}  # the rest works before nbf and after exp too
_TAG = 16


def operate(key: KeyVersion, operation: str, body: dict[str, Any], now: int) -> dict[str, Any]:
    """The members that the answer has beside ``kid``."""
    _check_use(key, operation, now)
    if operation == "sign":
        asked = members(body, "The request", ("alg", "value"))
        digest = decode(asked["value"], "value")
        return {"value": encode(_sign(key.material, asked["alg"], digest))}
    if operation == "verify":
        asked = members(body, "The request", ("alg", "digest", "value"))
        digest, signature = decode(asked["digest"], "digest"), decode(asked["value"], "value")
        return {"value": _verify(key.material, asked["alg"], digest, signature)}
    asked = members(body, "The request", ("alg", "value"), ("iv", "aad", "tag"))
    octets = {name: decode(asked[name], name) for name in ("value", "iv", "aad", "tag") if asked.get(name) is not None}
    made = _cipher(key.material, operation, asked["alg"], octets)
    return {name: encode(value) for name, value in made.items()}


def _check_use(key: KeyVersion, operation: str, now: int) -> None:
    if not key.enabled:
        raise forbidden("KeyDisabled", f"Operation {operation} is not allowed on a disabled key.")
    if operation not in key.key_ops:
        raise forbidden("KeyOperationForbidden", f"Operation {operation} is not permitted on this key.")
    if operation not in _PROTECTING:
        return
    if key.attributes.not_before is not None and now < key.attributes.not_before:
        raise forbidden("KeyNotYetValid", f"Operation {operation} is not allowed on a key that is not yet valid.")
    if key.attributes.expires is not None and now >= key.attributes.expires:
        raise forbidden("KeyExpired", f"Operation {operation} is not allowed on an expired key.")


def _unsupported(algorithm: object) -> Exception:
    return bad_parameter(f"The algorithm {str(algorithm)[:20]} does not go with this key and operation.")


def _check_length(digest: bytes, algorithm: hashes.HashAlgorithm) -> None:
    if len(digest) != algorithm.digest_size:
        raise bad_parameter(f"A digest by {algorithm.name} has {algorithm.digest_size} bytes, not {len(digest)}.")


def _rsa_scheme(name: object) -> tuple[padding.AsymmetricPadding, hashes.HashAlgorithm]:
    kind, algorithm = (name[:2], _HASHES.get(name[2:])) if isinstance(name, str) else ("", None)
    if algorithm is None or kind not in {"RS", "PS"}:
        raise _unsupported(name)
    if kind == "RS":
        return padding.PKCS1v15(), algorithm
    return padding.PSS(padding.MGF1(algorithm), padding.PSS.DIGEST_LENGTH), algorithm


def _ecdsa_hash(key: ec.EllipticCurvePrivateKey, name: object) -> hashes.HashAlgorithm:
    curve, algorithm = _ECDSA.get(name, ("", None)) if isinstance(name, str) else ("", None)
    if algorithm is None or not isinstance(key.curve, CURVES[curve]):
        raise _unsupported(name)
    return algorithm


def _sign(key: Material, name: object, digest: bytes) -> bytes:
    if isinstance(key, rsa.RSAPrivateKey):
        scheme, algorithm = _rsa_scheme(name)
        _check_length(digest, algorithm)
        return key.sign(digest, scheme, Prehashed(algorithm))
    if isinstance(key, ec.EllipticCurvePrivateKey):
        algorithm = _ecdsa_hash(key, name)
        _check_length(digest, algorithm)
        size = (key.curve.key_size + 7) // 8
        r, s = decode_dss_signature(key.sign(digest, ec.ECDSA(Prehashed(algorithm))))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")
    raise _unsupported(name)


def _verify(key: Material, name: object, digest: bytes, signature: bytes) -> bool:
    try:
        if isinstance(key, rsa.RSAPrivateKey):
            scheme, algorithm = _rsa_scheme(name)
            _check_length(digest, algorithm)
            key.public_key().verify(signature, digest, scheme, Prehashed(algorithm))
        elif isinstance(key, ec.EllipticCurvePrivateKey):
            algorithm = _ecdsa_hash(key, name)
            _check_length(digest, algorithm)
            key.public_key().verify(_dss(key, signature), digest, ec.ECDSA(Prehashed(algorithm)))
        else:
            raise _unsupported(name)
    except InvalidSignature:
        return False
    return True


def _dss(key: ec.EllipticCurvePrivateKey, signature: bytes) -> bytes:
    size = (key.curve.key_size + 7) // 8
    if len(signature) != 2 * size:
        raise InvalidSignature
    return encode_dss_signature(int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big"))


def _cipher(key: Material, operation: str, name: object, given: dict[str, bytes]) -> dict[str, bytes]:
    """``given``: value, iv, aad, tag; of the last three only what the algorithm takes."""
    if isinstance(key, bytes) and isinstance(name, str) and _AES.get(name[:4]) == len(key):
        if name[4:] == "GCM" and operation in {"encrypt", "decrypt"}:
            return _gcm_encrypt(key, given) if operation == "encrypt" else _gcm_decrypt(key, given)
        if name[4:] == "KW" and operation in {"wrapKey", "unwrapKey"}:
            return {"value": _key_wrap(key, operation, _only_value(given))}
    if isinstance(key, rsa.RSAPrivateKey) and name in _OAEP:
        scheme = padding.OAEP(padding.MGF1(_OAEP[str(name)]), _OAEP[str(name)], None)
        return {"value": _oaep(key, operation, scheme, _only_value(given))}
    raise _unsupported(name)


def _only_value(given: dict[str, bytes]) -> bytes:
    if set(given) != {"value"}:
        raise bad_parameter("iv, aad and tag do not go with this algorithm.")
    return given["value"]


def _oaep(key: rsa.RSAPrivateKey, operation: str, scheme: padding.OAEP, value: bytes) -> bytes:
    try:
        if operation in {"encrypt", "wrapKey"}:
            return key.public_key().encrypt(value, scheme)
        return key.decrypt(value, scheme)
    except ValueError as error:
        raise bad_parameter(f"The value cannot be used for {operation}.") from error


def _key_wrap(key: bytes, operation: str, value: bytes) -> bytes:
    try:
        return aes_key_wrap(key, value) if operation == "wrapKey" else aes_key_unwrap(key, value)
    except (ValueError, InvalidUnwrap) as error:
        raise bad_parameter(f"The value cannot be used for {operation}.") from error


def _gcm_encrypt(key: bytes, given: dict[str, bytes]) -> dict[str, bytes]:
    if {"iv", "tag"} & set(given):
        raise bad_parameter("The HSM makes iv and tag of an encryption with AES-GCM.")
    iv = secrets.token_bytes(12)
    sealed = AESGCM(key).encrypt(iv, given["value"], given.get("aad"))
    extra = {"aad": given["aad"]} if "aad" in given else {}
    return {"value": sealed[:-_TAG], "iv": iv, "tag": sealed[-_TAG:], **extra}


def _gcm_decrypt(key: bytes, given: dict[str, bytes]) -> dict[str, bytes]:
    if len(given.get("iv", b"")) != 12 or len(given.get("tag", b"")) != _TAG:
        raise bad_parameter("A decryption with AES-GCM needs an iv of 12 bytes and a tag of 16.")
    try:
        return {"value": AESGCM(key).decrypt(given["iv"], given["value"] + given["tag"], given.get("aad"))}
    except InvalidTag as error:
        raise bad_parameter("The ciphertext, iv, aad and tag do not belong together.") from error
