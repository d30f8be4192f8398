"""Why a signature does not verify: what was expected, and what it seems to be instead, found by trying.

Only public keys are used, so nothing is told that the caller could not find out without the broker. Few things are
tried, one deviation at a time and the form of the signature with each.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from broker.core import signatures
from broker.core.kinds import KeyType, SignatureAlgorithm
from broker.core.model import KeyVersion

MAX_VERSIONS = 16
"""Other versions that are tried, the newest first."""

_HEX = re.compile(rb"[0-9a-fA-F]+", re.ASCII)
_VAULT = re.compile(rb"vault:v[0-9]{1,9}:")
_DIGESTS: tuple[hashes.HashAlgorithm, ...] = (
    hashes.SHA256(), hashes.SHA384(), hashes.SHA512(), hashes.SHA224(),
    hashes.SHA1(),  # noqa: S303 - to recognise what others have made
)  # fmt: skip


def expected(algorithm: SignatureAlgorithm, version: int) -> str:
    """A sentence that says what would have been valid."""
    form = "as DER" if algorithm.startswith("ES") else "raw"
    return f"Expected was a signature by version {version} with {_said(algorithm)}, {form}."


def found(
    key_type: KeyType,
    algorithm: SignatureAlgorithm,
    version: KeyVersion,
    others: list[KeyVersion],
    data: bytes,
    signature: bytes,
    *,
    prehashed: bool,
) -> str:
    """A sentence that says what the signature seems to be; "" when nothing is found."""
    forms = list(_forms(key_type, signature))
    public = version.public_key or b""
    for form, how in forms:
        if how and _holds(public, algorithm, data, form, prehashed=prehashed):
            return f"It is valid once it is taken for what it is: {how}."
    for form, how in forms:
        also = f" ({how})" if how else ""
        if (other := _otherwise(public, algorithm, data, form, prehashed=prehashed)) is not None:
            return f"It is one with {other}{also}."
        for changed, what in _data(data, prehashed=prehashed):
            if _holds(public, algorithm, changed, form, prehashed=prehashed):
                return f"It is one of {what}{also}."
        for each in others[:MAX_VERSIONS]:
            if _holds(each.public_key or b"", algorithm, data, form, prehashed=prehashed):
                return f"It is one by version {each.number} of the key{also}: name that version."
    return _looks(key_type, signature)


def _said(algorithm: SignatureAlgorithm) -> str:
    digest = signatures.digest_of(algorithm)
    if digest is None:
        return f"{algorithm} (the message whole)"
    scheme = {"E": "ECDSA", "P": f"RSA-PSS, a salt of {digest.digest_size} bytes", "R": "RSA, PKCS#1 v1.5"}
    return f"{algorithm} ({scheme[algorithm[0]]}, {_hash_name(digest)})"


def _hash_name(digest: hashes.HashAlgorithm) -> str:
    return f"SHA-{digest.name.removeprefix('sha')}"


def _forms(key_type: KeyType, signature: bytes) -> Iterator[tuple[bytes, str]]:
    """The signature as it is, and as what it may be written as; with words for that."""
    yield from _pair(key_type, signature, "")
    for end in (b"\n", b"\r\n"):  # a signature may itself end in such a byte, so no more than one is taken away
        if signature.endswith(end):
            yield from _pair(key_type, signature.removesuffix(end), "with a line end after it")
    text = b"".join(_VAULT.sub(b"", signature.strip()).split())
    if _HEX.fullmatch(text) and len(text) % 2 == 0:
        yield from _pair(key_type, bytes.fromhex(text.decode("ascii")), "hexadecimal, where bytes are wanted")
    try:
        whole = text.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
        decoded = base64.b64decode(whole + b"=" * (-len(whole) % 4), validate=True)
    except (binascii.Error, ValueError):
        return
    yield from _pair(key_type, decoded, "base64, where bytes are wanted")


def _pair(key_type: KeyType, form: bytes, how: str) -> Iterator[tuple[bytes, str]]:
    yield form, how
    if key_type.startswith("ec") and form and len(form) % 2 == 0:
        half = len(form) // 2
        r, s = int.from_bytes(form[:half], "big"), int.from_bytes(form[half:], "big")
        raw = "r and s side by side and not DER (--encoding jose)"
        yield encode_dss_signature(r, s), f"{how}; {raw}" if how else raw


def _holds(public: bytes, algorithm: SignatureAlgorithm, data: bytes, form: bytes, *, prehashed: bool) -> bool:
    return bool(public) and signatures.verify(public, algorithm, data, form, prehashed=prehashed)


def _otherwise(
    public: bytes, algorithm: SignatureAlgorithm, data: bytes, form: bytes, *, prehashed: bool
) -> str | None:
    """Another hash or padding with which it holds, as people call it, with the algorithm to name where there is one."""
    if prehashed or algorithm is SignatureAlgorithm.EDDSA:
        return None
    key: Any = signatures.load_public_key(public)
    for digest in _DIGESTS:
        for name, how in _ways(key, digest):
            try:
                key.verify(form, data, *how)
            except (InvalidSignature, ValueError):
                continue
            return name
    return None


def _ways(key: Any, digest: hashes.HashAlgorithm) -> Iterator[tuple[str, tuple[Any, ...]]]:
    name = _hash_name(digest)
    if isinstance(key, ec.EllipticCurvePublicKey):
        yield f"ECDSA and {name}, which a key on this curve is not used with here", (ec.ECDSA(digest),)
    if isinstance(key, rsa.RSAPublicKey):
        number = digest.name.removeprefix("sha")
        known = {f"{family}{number}" for family in ("RS", "PS")} <= {one.value for one in SignatureAlgorithm}
        ours = (f"RS{number}: --algorithm RS{number}", f"PS{number}: --algorithm PS{number}") if known else ("", "")
        yield ours[0] or f"PKCS#1 v1.5 and {name}, which is not used here", (padding.PKCS1v15(), digest)
        exact = padding.PSS(padding.MGF1(digest), digest.digest_size)
        yield ours[1] or f"PSS and {name}, which is not used here", (exact, digest)
        other = f"PSS and {name} with a salt of another length than the hash has (rsa_pss_saltlen:digest)"
        yield other, (padding.PSS(padding.MGF1(digest), padding.PSS.AUTO), digest)


def _data(data: bytes, *, prehashed: bool) -> Iterator[tuple[bytes, str]]:
    """What else may have been signed, with words for it."""
    if prehashed:
        return
    yield data + b"\n", "this message with a line end after it"
    if data.endswith(b"\n"):
        yield data[:-1], "this message without its last line end"
        yield data[:-1].removesuffix(b"\r"), "this message without its last line end"
    if b"\r\n" in data:
        yield data.replace(b"\r\n", b"\n"), "this message with line ends of LF, not CRLF"
    elif b"\n" in data:
        yield data.replace(b"\n", b"\r\n"), "this message with line ends of CRLF, not LF"
    for digest in _DIGESTS[:3]:
        made = hashes.Hash(digest)
        made.update(data)
        hashed, name = made.finalize(), _hash_name(digest)
        yield hashed, f"the {name} of this message, hashed once more"
        yield hashed.hex().encode(), f"the {name} of this message written in hexadecimal"


def _looks(key_type: KeyType, signature: bytes) -> str:
    """What can be said of its form alone."""
    text = signature.strip()
    if _HEX.fullmatch(text):
        return "It looks like hexadecimal, and bytes are wanted."
    if text.startswith(b"-----BEGIN"):
        return "It looks like PEM, and bytes are wanted."
    is_der = signature.startswith(b"\x30")
    if key_type.startswith("ec") and not is_der:
        return "It is not DER; a signature of r and s side by side takes --encoding jose."
    return "It is another message's or another key's, or one of the two was changed."
