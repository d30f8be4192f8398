"""An issuer's public keys (RFC 7517): what is unsound is left out, and each key verifies by one way only."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from broker.auth.oidc.compact import MAX_KID, Token

MAX_KEYS = 100
RSA_BITS = range(2048, 8193)
RSA_EXPONENTS = range(65537, 2**32)
PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
CURVES: Mapping[str, tuple[ec.EllipticCurve, str]] = {
    "P-256": (ec.SECP256R1(), "ES256"),
    "P-384": (ec.SECP384R1(), "ES384"),
}
HASHES: Mapping[str, hashes.HashAlgorithm] = {"ES256": hashes.SHA256(), "ES384": hashes.SHA384()}

P25519 = 2**255 - 19
SMALL = frozenset({
    0, 1, P25519 - 1,
    0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
    0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD83D3D706A17C7,
})  # fmt: skip
"""The y of the eight points of small order on edwards25519 (RFC 7748 and RFC 8032): such a key signs anything."""

Public = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class Key:
    """A sound key and the algorithms it may verify."""

    public: Public
    algorithms: frozenset[str]

    def verifies(self, token: Token) -> bool:
        """Whether the token's signature holds; False for an algorithm that this key is not for."""
        if token.algorithm not in self.algorithms:
            return False
        try:
            _verify(self.public, token)
        except InvalidSignature:
            return False
        return True


def load(document: Mapping[str, Any]) -> tuple[dict[str, Key], int]:
    """The sound keys of a key set by ``kid``, and how many were left out.

    A ``kid`` that stands for two different keys stands for none. ValueError when there is no key set at all.
    """
    listed = document.get("keys")
    if not isinstance(listed, list):
        raise ValueError("no key set")  # noqa: TRY004 (what an issuer sent is a value)
    found: dict[str, Key | None] = {}
    for one in listed[:MAX_KEYS]:
        kid, key = _kid(one), _key(one)
        if kid is None:
            continue
        # An unsound key does not push out a sound one of its name, but two sound ones push out each other.
        if key is not None:
            found[kid] = key if kid not in found or found[kid] == key else None
    sound = {kid: key for kid, key in found.items() if key is not None}
    return sound, len(listed) - len(sound)


def _kid(one: Any) -> str | None:
    kid = one.get("kid") if isinstance(one, dict) else None
    return kid if isinstance(kid, str) and 1 <= len(kid.encode()) <= MAX_KID else None


def _key(one: Any) -> Key | None:
    """The key in one entry; None for any that is not sound, whatever is wrong with it."""
    if not isinstance(one, dict) or PRIVATE & one.keys() or one.get("use", "sig") != "sig":
        return None
    operations = one.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    try:
        public, algorithms = _READERS[one["kty"]](one)
    except (KeyError, TypeError, ValueError):
        return None
    bound = one.get("alg")
    algorithms = algorithms if bound is None else algorithms & ({bound} if isinstance(bound, str) else set())
    return Key(public, algorithms) if algorithms else None


def _rsa(one: dict[str, Any]) -> tuple[Public, frozenset[str]]:
    # Measured before any maths: a modulus of 16,384 bits costs a hundred times the usual one (NT-08).
    modulus, exponent = int.from_bytes(_bytes(one["n"], 1100), "big"), int.from_bytes(_bytes(one["e"], 8), "big")
    if modulus.bit_length() not in RSA_BITS or not modulus & 1 or exponent not in RSA_EXPONENTS or not exponent & 1:
        raise ValueError("an RSA key that is not taken")
    return rsa.RSAPublicNumbers(exponent, modulus).public_key(), frozenset({"RS256", "PS256"})


def _ec(one: dict[str, Any]) -> tuple[Public, frozenset[str]]:
    curve, algorithm = CURVES[one["crv"]]
    size = curve.key_size // 8
    x, y = _bytes(one["x"], size), _bytes(one["y"], size)
    if len(x) != size or len(y) != size:
        raise ValueError("a coordinate of a wrong length")
    # Building the key checks that the point is on the curve; all points but infinity are of full order there.
    point = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve)
    return point.public_key(), frozenset({algorithm})


def _okp(one: dict[str, Any]) -> tuple[Public, frozenset[str]]:
    raw = _bytes(one["x"], 32)
    y = int.from_bytes(raw, "little") & (2**255 - 1)
    if one["crv"] != "Ed25519" or len(raw) != 32 or y >= P25519 or y in SMALL:
        raise ValueError("a point that is not taken")
    return ed25519.Ed25519PublicKey.from_public_bytes(raw), frozenset({"EdDSA"})


_READERS = {"RSA": _rsa, "EC": _ec, "OKP": _okp}


def _bytes(text: Any, most: int) -> bytes:
    if not isinstance(text, str) or len(text) > most * 4 // 3 + 4:
        raise ValueError("too long")
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _verify(public: Public, token: Token) -> None:
    if isinstance(public, rsa.RSAPublicKey):
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), hashes.SHA256.digest_size)
        scheme = pss if token.algorithm == "PS256" else padding.PKCS1v15()
        public.verify(token.signature, token.signing_input, scheme, hashes.SHA256())
    elif isinstance(public, ec.EllipticCurvePublicKey):
        half = public.curve.key_size // 8
        if len(token.signature) != 2 * half:
            raise InvalidSignature
        r, s = int.from_bytes(token.signature[:half], "big"), int.from_bytes(token.signature[half:], "big")
        public.verify(encode_dss_signature(r, s), token.signing_input, ec.ECDSA(HASHES[token.algorithm]))
    else:
        public.verify(token.signature, token.signing_input)
