"""Certificates and public keys in files as other programs write them: taken, or named for what they are.

Each function raises ValueError with the end of a sentence ("… holds a private key, …"), which quotes nothing of the
file: who calls says whose file it is. What is taken comes back in one spelling, and nothing else of the file with it,
because others may read it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    pkcs7,
)

MAX_CERTIFICATES = 64
MAX_BYTES = 1 << 20
_T = TypeVar("_T")

_BEGIN, _DASHES = "-----BEGIN ", "-----"
_CERTIFICATE = frozenset({"CERTIFICATE", "X509 CERTIFICATE"})
_OTHER = {
    "CERTIFICATE REQUEST": "a certificate request, and not yet a certificate",
    "NEW CERTIFICATE REQUEST": "a certificate request, and not yet a certificate",
    "PUBLIC KEY": "a bare public key, and no certificate",
    "RSA PUBLIC KEY": "a bare public key, and no certificate",
    "TRUSTED CERTIFICATE": "a certificate with trust settings of OpenSSL's; write it anew with `openssl x509 -in FILE`",
    "X509 CRL": "a list of revoked certificates, which is not looked at; leave it out",
}


def certificates(content: bytes) -> str:
    """The certificates in a file, as PEM and nothing else: 1 to 64 of them, each once.

    Taken are PEM with whatever text around it, DER, PKCS#7 in both, with a byte order mark, UTF-16 and any line ends.
    """
    found = dict.fromkeys(_pems(text) if (text := _text(content)) is not None else _binary(content))
    if len(found) > MAX_CERTIFICATES:
        raise ValueError(
            f"holds {len(found)} certificates, and at most {MAX_CERTIFICATES} are taken; give only the "
            "CA's that the server's certificate is from"
        )
    return "".join(one.public_bytes(Encoding.PEM).decode("ascii") for one in found)


def public_key(content: bytes) -> bytes:
    """The one public key in a file, as SubjectPublicKeyInfo DER; of a certificate its key."""
    text = _text(content)
    if text is None:
        return _spki(load_der_public_key, content, "is binary and no public key in DER")
    found = list(_blocks(text))
    if not found:
        json = "; write its JSON web key as PEM" if text.lstrip().startswith("{") else ""
        raise ValueError(f"holds no public key in PEM, which begins with -----BEGIN PUBLIC KEY-----{json}")
    if len(found) > 1:
        raise ValueError(f"holds {len(found)} things, and one public key is wanted")
    label, der = found[0]
    if label in _CERTIFICATE:
        return _certificate(der, 1, 1).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if label not in {"PUBLIC KEY", "RSA PUBLIC KEY"}:
        raise ValueError(f"holds {_OTHER.get(label, f'a block of another kind ({label[:40]})')}, not a public key")
    return _spki(load_der_public_key, der, "holds a public key that cannot be read; get it again")


def _text(content: bytes) -> str | None:
    """As text, without its byte order mark; None when it is binary."""
    if not content.strip():
        raise ValueError("is empty")
    if len(content) > MAX_BYTES:
        raise ValueError(f"is longer than {MAX_BYTES >> 10} KiB")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
    if content.startswith(b"\x30") or b"\0" in content:
        return None
    return content.decode("utf-8-sig", "replace")


def _pems(text: str) -> Iterable[x509.Certificate]:
    blocks = list(_blocks(text))
    if not blocks:
        raise ValueError("holds no certificate in PEM, which begins with -----BEGIN CERTIFICATE-----")
    found: list[x509.Certificate] = []
    for at, (label, der) in enumerate(blocks, 1):
        if label == "PKCS7":
            found += _pkcs7(der)
        elif label in _CERTIFICATE:
            found.append(_certificate(der, at, len(blocks)))
        else:
            raise ValueError(f"holds {_OTHER.get(label, f'a block of another kind ({label[:40]}); leave it out')}")
    return found


def _blocks(text: str) -> Iterable[tuple[str, bytes]]:
    """(label, content) of each PEM block (RFC 7468); whatever stands between them is passed over."""
    for at, piece in enumerate(text.split(_BEGIN)[1:], 1):
        label, _, rest = piece.partition(_DASHES)
        if "PRIVATE KEY" in label:
            raise ValueError(
                "holds a private key, which does not belong here; give the certificate or public key only, and if "
                "others could read that file, replace the key"
            )
        body, end, _ = rest.partition(f"-----END {label}-----")
        if not end:
            raise ValueError(f"is cut off: its block {at} has no end")
        try:
            yield label, base64.b64decode("".join(body.split()), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(f"is damaged: its block {at} is not base64") from None


def _binary(content: bytes) -> Iterable[x509.Certificate]:
    try:
        return [x509.load_der_x509_certificate(content)]
    except ValueError:
        return _pkcs7(content)


def _pkcs7(der: bytes) -> list[x509.Certificate]:
    try:
        found = pkcs7.load_der_pkcs7_certificates(der)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(
            "is binary, and neither a certificate (DER) nor PKCS#7; of a PKCS#12 or Java key store write the "
            "certificates out as PEM"
        ) from None
    if not found:
        raise ValueError("is PKCS#7 without a certificate")
    return found


def _certificate(der: bytes, at: int, of: int) -> x509.Certificate:
    which = "the certificate" if of == 1 else f"certificate {at} of {of}"
    return _read(x509.load_der_x509_certificate, der, f"is damaged: {which} in it cannot be read")


def _spki(load: Callable[[bytes], object], der: bytes, otherwise: str) -> bytes:
    key = _read(load, der, otherwise)
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined,no-any-return]


def _read(load: Callable[[bytes], _T], der: bytes, otherwise: str) -> _T:
    try:
        return load(der)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(otherwise) from None
