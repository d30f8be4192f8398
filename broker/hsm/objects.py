"""The broker's objects in the token: how they are made, found and read.

The templates are the policy, because a token may enforce little: sensitive, one purpose, no derivation, extractable
only when created so. What was asked for is read back after creation, since a token may also ignore a template (HS-23).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from asn1crypto.core import OctetString
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pkcs11 import Attribute, Mechanism, MechanismFlag, ObjectClass
from pkcs11 import KeyType as CkKeyType

from broker.core.errors import AlreadyExists, InvalidRequest, Unavailable
from broker.core.kinds import KeyType, KeyUsage
from broker.core.reasons import Reason
from broker.core.report import Origin
from broker.hsm.mechanisms import AES_BITS, CURVE_OIDS
from broker.hsm.sanity import CURVES, RSA_BITS, check_public_key
from broker.hsm.sessions import Worker

Template = dict[Attribute, Any]
_SIGNING_TYPES: Final = frozenset(KeyType) - frozenset(AES_BITS)
_ENCRYPTING_TYPES: Final = frozenset(RSA_BITS) | frozenset(AES_BITS)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a key is to be. ``copyable_known``: the token understands CKA_COPYABLE (PKCS#11 2.40)."""

    key_type: KeyType
    usage: KeyUsage
    exportable: bool
    copyable_known: bool = True

    @property
    def classes(self) -> set[ObjectClass]:
        """The classes of the objects that make a whole key."""
        public = set() if self.key_type.symmetric else {ObjectClass.PUBLIC_KEY}
        return {secret_class(self.key_type), *public}

    def secret(self) -> Template:
        """The attributes of the secret half, all of them checked when they are read back."""
        signs = self.usage is KeyUsage.SIGN
        template: Template = {
            Attribute.PRIVATE: True,
            Attribute.SENSITIVE: True,
            Attribute.EXTRACTABLE: self.exportable,
            Attribute.SIGN: signs,
            Attribute.DECRYPT: not signs,
            Attribute.UNWRAP: False,
            Attribute.DERIVE: False,
        }
        if self.copyable_known:
            template[Attribute.COPYABLE] = False  # a copy could be given other attributes (HS-04)
        if self.key_type.symmetric:
            template |= {Attribute.ENCRYPT: True, Attribute.VERIFY: False, Attribute.WRAP: False}
        return template

    def public(self) -> Template:
        """The attributes of the public half."""
        signs = self.usage is KeyUsage.SIGN
        return {
            Attribute.PRIVATE: False,
            Attribute.VERIFY: signs,
            Attribute.ENCRYPT: not signs,
            Attribute.WRAP: False,
            Attribute.DERIVE: False,
        }


def secret_class(key_type: KeyType) -> ObjectClass:
    """The class of the half that is secret."""
    return ObjectClass.SECRET_KEY if key_type.symmetric else ObjectClass.PRIVATE_KEY


def check_usage(key_type: KeyType, usage: KeyUsage, *, exportable: bool) -> None:
    """Return if such a key can exist; else InvalidRequest."""
    if key_type not in (_SIGNING_TYPES if usage is KeyUsage.SIGN else _ENCRYPTING_TYPES):
        raise InvalidRequest(
            Reason.ALGORITHM_MISMATCH, f"A key of type {key_type} cannot {usage}; choose another type."
        )
    if exportable and key_type is KeyType.ED25519:
        raise InvalidRequest(
            Reason.KEY_NOT_EXPORTABLE, "Ed25519 keys are never exportable; create the key as not exportable."
        )


def make(worker: Worker, hsm_id: bytes | None, recipe: Recipe, label: str = "") -> list[Any]:
    """Generate: [secret] or [private, public]. ``hsm_id`` None makes a session object. Hold the objects lock."""
    named: dict[str, Any] = {"capabilities": MechanismFlag(0), "store": hsm_id is not None}
    if hsm_id is not None:
        named |= {"id": hsm_id, "label": label}
    kind = recipe.key_type
    if kind in AES_BITS:
        return [worker.session.generate_key(CkKeyType.AES, AES_BITS[kind], template=recipe.secret(), **named)]
    named |= {"public_template": recipe.public(), "private_template": recipe.secret()}
    if kind in RSA_BITS:
        public, private = worker.session.generate_keypair(CkKeyType.RSA, RSA_BITS[kind], **named)
    else:
        edwards = kind is KeyType.ED25519
        parameters = worker.session.create_domain_parameters(
            CkKeyType.EC_EDWARDS if edwards else CkKeyType.EC, {Attribute.EC_PARAMS: CURVE_OIDS[kind]}, local=True
        )
        mechanism = Mechanism.EC_EDWARDS_KEY_PAIR_GEN if edwards else Mechanism.EC_KEY_PAIR_GEN
        public, private = parameters.generate_keypair(mechanism=mechanism, **named)
    return [private, public]


def matches(found: Any, template: Template) -> bool:
    """True when the object really has each of these attributes."""
    read = found.get_attributes(list(template))
    return all(read.get(attribute) == value for attribute, value in template.items())


def origin_of(secret: Any) -> Origin:
    """What the token says of a secret half's past."""
    names = {
        "local": Attribute.LOCAL,
        "sensitive": Attribute.SENSITIVE,
        "always_sensitive": Attribute.ALWAYS_SENSITIVE,
        "extractable": Attribute.EXTRACTABLE,
        "never_extractable": Attribute.NEVER_EXTRACTABLE,
    }
    read = secret.get_attributes(list(names.values()))
    return Origin(**{name: read.get(attribute) for name, attribute in names.items()})


def marks(recipe: Recipe) -> Template:
    """The flags of a secret half, and that the token made it itself."""
    return {**recipe.secret(), Attribute.LOCAL: True}


def differing(flags: Mapping[int, bytes], recipe: Recipe) -> tuple[str, ...]:
    """The ``marks`` that a secret half has otherwise than it was made; what a token never knew does not differ."""
    unknown = {Attribute.COPYABLE} if int(Attribute.COPYABLE) not in flags else set()
    wanted = {mark: value for mark, value in marks(recipe).items() if mark not in unknown}
    return tuple(f"CKA_{mark.name}" for mark, value in wanted.items() if flags.get(int(mark)) != bytes([value]))


def generated(secret: Any) -> bool:
    """Whether the token itself made this key, to the end: SoftHSM writes CKA_LOCAL together with the value, last."""
    return secret.get_attributes([Attribute.LOCAL]).get(Attribute.LOCAL) is True


def accept(things: list[Any], recipe: Recipe) -> bytes | None:
    """Read everything back and return the SubjectPublicKeyInfo DER (None for AES).

    AlreadyExists ``HSM_ID_TAKEN`` when these objects are not exactly the key that the recipe describes.
    """
    by_class = {thing.object_class: thing for thing in things}
    if by_class.keys() != recipe.classes or len(things) != len(by_class):
        raise _taken()
    secret, public = by_class[secret_class(recipe.key_type)], by_class.get(ObjectClass.PUBLIC_KEY)
    if not matches(secret, recipe.secret()):
        raise _taken()
    if public is None:
        if secret[Attribute.VALUE_LEN] * 8 != AES_BITS[recipe.key_type]:
            raise _taken()
        return None
    if not matches(public, recipe.public()) or type_of(public) not in {None, recipe.key_type}:
        raise _taken()
    spki = read_public_key(public, recipe.key_type)
    check_public_key(recipe.key_type, spki)
    return spki


def _taken() -> AlreadyExists:
    return AlreadyExists(
        Reason.HSM_ID_TAKEN,
        "The HSM already holds another key under the id that was drawn for this one; leave that one, and send a new "
        "request, which draws another id.",
    )


def type_of(public: Any) -> KeyType | None:
    """Which key type a public-key object says it is; None when it is none that the broker makes."""
    try:
        kind = public[Attribute.KEY_TYPE]
    except ValueError:  # one that no standard has
        return None
    if kind is CkKeyType.RSA:
        bits = int.from_bytes(public[Attribute.MODULUS], "big").bit_length()
        return next((kind for kind, size in RSA_BITS.items() if size == bits), None)
    if kind not in {CkKeyType.EC, CkKeyType.EC_EDWARDS}:
        return None
    parameters = public[Attribute.EC_PARAMS]
    return next((kind for kind, oid in CURVE_OIDS.items() if oid == parameters), None)


def read_public_key(public: Any, key_type: KeyType) -> bytes:
    """The SubjectPublicKeyInfo DER of a public-key object; Unavailable ``HSM_FAULT`` when it is not well-formed."""
    try:
        return _read_rsa(public) if key_type in RSA_BITS else _read_point(public, key_type)
    except (ValueError, TypeError, KeyError) as fault:
        raise Unavailable(
            Reason.HSM_FAULT, "The HSM's public key is not well-formed; the key is not used. Check the device."
        ) from fault


def _read_rsa(public: Any) -> bytes:
    read = public.get_attributes([Attribute.MODULUS, Attribute.PUBLIC_EXPONENT])
    modulus = int.from_bytes(read[Attribute.MODULUS], "big")
    exponent = int.from_bytes(read[Attribute.PUBLIC_EXPONENT], "big")
    return _spki(rsa.RSAPublicNumbers(exponent, modulus).public_key())


def _read_point(public: Any, key_type: KeyType) -> bytes:
    encoded: bytes = public[Attribute.EC_POINT]
    if key_type is KeyType.ED25519:
        return _spki(ed25519.Ed25519PublicKey.from_public_bytes(_unwrapped(encoded, 32)))
    curve = CURVES[key_type]()
    size = 1 + 2 * ((curve.key_size + 7) // 8)
    return _spki(ec.EllipticCurvePublicKey.from_encoded_point(curve, _unwrapped(encoded, size)))


def _unwrapped(encoded: bytes, size: int) -> bytes:
    """CKA_EC_POINT is a DER OCTET STRING by the standard; some tokens give the bare point of ``size`` bytes."""
    if len(encoded) == size:
        return encoded
    point = OctetString.load(encoded, strict=True).native
    if not isinstance(point, bytes) or len(point) != size:
        raise ValueError("CKA_EC_POINT of wrong length")
    return point


def _spki(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
