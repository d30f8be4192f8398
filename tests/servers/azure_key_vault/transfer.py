"""The BYOK transfer file, opened as strictly as its specification reads.

``{schema_version: "1.0.0", header: {kid, alg: "dir", enc: "CKM_RSA_AES_KEY_WRAP"}, ciphertext, generator}``; the
ciphertext is RSA-OAEP (SHA-1, MGF1 with SHA-1, no label) of an AES-256 key under the KEK, followed by RFC 5649 of the
target key under that. An RSA or EC target is one DER PrivateKeyInfo (PKCS#8) and nothing after it; AES is raw.
"""

from __future__ import annotations

from asn1crypto import core, keys, parser
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap_with_padding
from cryptography.hazmat.primitives.serialization import load_der_private_key

from .encoding import decode, members, parse
from .material import RSA_BITS, Material, curve_name
from .refusals import bad_parameter

LARGEST = 64 * 1024
_EPHEMERAL = 32
_SHA1 = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)  # noqa: S303 (the specification's only hash)
_STRUCTURES = {"rsa": keys.RSAPrivateKey, "ec": keys.ECPrivateKey}


class TransferFile:
    """What a transfer file says before it is opened: the KEK's id and the ciphertext."""

    def __init__(self, text: object) -> None:
        """``text``: the member ``key_hsm`` of an import, base64url of the whole file."""
        if isinstance(text, str) and len(text) > LARGEST * 4 // 3 + 1:
            raise bad_parameter(f"key_hsm is larger than {LARGEST} bytes.")
        file = parse(decode(text, "key_hsm"), "The transfer file")
        members(file, "The transfer file", ("schema_version", "header", "ciphertext", "generator"))
        header = members(file["header"], "The transfer file's header", ("kid", "alg", "enc"))
        _must_be(file["schema_version"], "1.0.0", "schema_version")
        _must_be(header["alg"], "dir", "alg")
        _must_be(header["enc"], "CKM_RSA_AES_KEY_WRAP", "enc")
        if not isinstance(file["generator"], str) or not isinstance(header["kid"], str):
            raise bad_parameter("The transfer file's kid or generator is not a string.")
        self.kid: str = header["kid"]
        self.ciphertext = decode(file["ciphertext"], "The transfer file's ciphertext")

    def open(self, kek: rsa.RSAPrivateKey, kty: str, crv: str | None) -> Material:
        """The key inside, which must be of the kind that the import says."""
        size = kek.key_size // 8
        if len(self.ciphertext) < size + 16 or (len(self.ciphertext) - size) % 8:
            raise bad_parameter(f"A ciphertext of {len(self.ciphertext)} bytes does not fit a KEK of {size} bytes.")
        return _material(self._target(kek, size), kty, crv)

    def _target(self, kek: rsa.RSAPrivateKey, size: int) -> bytes:
        try:
            ephemeral = kek.decrypt(self.ciphertext[:size], _SHA1)
        except ValueError as error:
            raise bad_parameter("The ephemeral key does not open with RSA-OAEP and SHA-1 under the KEK.") from error
        if len(ephemeral) != _EPHEMERAL:
            raise bad_parameter(f"The ephemeral key has {len(ephemeral)} bytes and is not AES-256.")
        try:
            return aes_key_unwrap_with_padding(ephemeral, self.ciphertext[size:])
        except InvalidUnwrap as error:
            raise bad_parameter("The target key does not unwrap by RFC 5649 under the ephemeral key.") from error


def _must_be(found: object, wanted: str, what: str) -> None:
    if found != wanted:
        raise bad_parameter(f'The transfer file\'s {what} is not "{wanted}".')


def _material(target: bytes, kty: str, crv: str | None) -> Material:
    if kty == "oct-HSM":
        if len(target) not in {16, 24, 32}:
            raise bad_parameter(f"An AES key has 16, 24 or 32 bytes, not {len(target)}.")
        return target
    material = private_key(target)
    if kty == "RSA-HSM" and isinstance(material, rsa.RSAPrivateKey):
        if material.key_size not in RSA_BITS:
            raise bad_parameter(f"An RSA key of {material.key_size} bits is not supported.")
        return material
    if kty == "EC-HSM" and isinstance(material, ec.EllipticCurvePrivateKey):
        if curve_name(material) != crv:
            raise bad_parameter(f"The key is on {curve_name(material)}, not on {crv}.")
        return material
    raise bad_parameter(f"The key inside is not of the type {kty}.")


def private_key(der: bytes) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
    """Exactly one PrivateKeyInfo in DER, with exactly one RSA or EC private key inside."""
    try:
        _parse_strictly(der)
        loaded = load_der_private_key(der, None)
    except (ValueError, TypeError, OverflowError, UnsupportedAlgorithm) as error:
        raise bad_parameter(f"The target key is not one PKCS#8 PrivateKeyInfo: {error}") from error
    if not isinstance(loaded, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise bad_parameter("The target key is neither RSA nor EC.")
    return loaded


def _parse_strictly(der: bytes) -> None:
    outer = _whole(keys.PrivateKeyInfo, der)
    algorithm = outer["private_key_algorithm"]["algorithm"].native
    if algorithm not in _STRUCTURES:
        raise bad_parameter(f"A key of the algorithm {algorithm} is not supported.")
    _whole(_STRUCTURES[algorithm], outer["private_key"].contents)


def _whole(structure: type[core.Sequence], der: bytes) -> core.Sequence:
    """``der`` as that structure and nothing else, in DER's one form: no trailing byte, no longer length than needed."""
    try:
        _check_lengths(der)
        parsed = structure.load(der, strict=True)
        parsed.native  # noqa: B018 (asn1crypto parses only what is looked at)
    except (TypeError, KeyError) as error:
        raise ValueError(str(error)) from error
    return parsed


def _check_lengths(der: bytes) -> None:
    while der:
        class_, method, tag, header, content, trailer = parser.parse(der)
        size = len(header) + len(content) + len(trailer)
        if parser.emit(class_, method, tag, content) != der[:size]:
            raise ValueError("a length is not written as DER has it")
        if method == 1:
            _check_lengths(content)
        der = der[size:]
