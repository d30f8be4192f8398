"""What a client certificate says, read once: who it is for, from when to when, and whether it may be used so.

The identity is exactly one subject alternative name, a URI ``spiffe://TRUST-DOMAIN/operator/NAME`` (SPIFFE-ID 2.1);
the common name and every other part of the subject mean nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from broker.core import names
from broker.core.errors import InvalidRequest, Unauthenticated
from broker.core.reasons import Reason

TRUST_DOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,253}[a-z0-9])?", re.ASCII)
MAX_PEM = 16 * 1024
UNDERSTOOD = {
    x509.BasicConstraints.oid,
    x509.KeyUsage.oid,
    x509.ExtendedKeyUsage.oid,
    x509.SubjectAlternativeName.oid,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A certificate that is sound in itself; whether it is valid now and not revoked is asked at each call."""

    operator: str
    serial: str  # lower-case hex
    not_before: datetime
    not_after: datetime
    authority: x509.Certificate  # which has signed it


ANEW: Final = "have an administrator issue one (`broker operator issue NAME`)"
"""How an operator without a good certificate gets one: by somebody else, since it takes a good one to ask for it."""


def read(pem: bytes, authorities: Sequence[x509.Certificate], trust_domain: str) -> Identity:
    """The identity in a PEM certificate; Unauthenticated, with the reason, when it cannot stand for an operator.

    One of ``authorities`` must have signed it directly: neither an intermediate nor a trusted leaf speaks for the CA.
    """
    if len(pem) > MAX_PEM:
        raise _bad(
            Reason.CERTIFICATE_UNREADABLE, f"The client certificate is too long to be one of the broker's; {ANEW}."
        )
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        extensions = certificate.extensions
        _whole_bytes(certificate)
        authority = _signer(certificate, authorities)
        _usable(extensions)
        return Identity(
            operator=_operator(extensions, trust_domain),
            serial=f"{certificate.serial_number:x}",
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            authority=authority,
        )
    except (ValueError, x509.DuplicateExtension, x509.InvalidVersion, x509.UnsupportedGeneralNameType) as error:
        raise _bad(Reason.CERTIFICATE_UNREADABLE, f"The client certificate cannot be read; {ANEW}.") from error


def _whole_bytes(certificate: x509.Certificate) -> None:
    """ValueError if the last bits of the signature are said to be unused: another spelling of one certificate."""
    if certificate.public_bytes(Encoding.DER)[-len(certificate.signature) - 1] != 0:
        raise ValueError("a signature is a whole number of bytes (RFC 5280 4.1.1.3, RFC 5758 3.2)")


def _signer(certificate: x509.Certificate, authorities: Sequence[x509.Certificate]) -> x509.Certificate:
    for authority in authorities:
        with suppress(ValueError, TypeError, InvalidSignature):
            certificate.verify_directly_issued_by(authority)
            return authority
    raise _bad(
        Reason.CERTIFICATE_ISSUER,
        "The client certificate was not signed by this broker's operator CA, or by one that was retired since: call "
        f"the broker that it is for, or {ANEW}.",
    )


def _usable(extensions: x509.Extensions) -> None:
    found = {each.oid: each.value for each in extensions}
    if any(each.critical and each.oid not in UNDERSTOOD for each in extensions):
        raise _bad(
            Reason.CERTIFICATE_USAGE,
            f"The client certificate has a critical extension that the broker does not know; {ANEW}.",
        )
    constraints = found.get(x509.BasicConstraints.oid)
    usage = found.get(x509.KeyUsage.oid)
    extended = found.get(x509.ExtendedKeyUsage.oid)
    if isinstance(constraints, x509.BasicConstraints) and constraints.ca:
        raise _bad(
            Reason.CERTIFICATE_IS_CA, "The client certificate is a CA's; call with an operator's own certificate."
        )
    if isinstance(usage, x509.KeyUsage) and not usage.digital_signature:
        raise _bad(
            Reason.CERTIFICATE_USAGE,
            f"The client certificate's key may not sign, so it cannot identify a caller; {ANEW}.",
        )
    if not isinstance(extended, x509.ExtendedKeyUsage) or ExtendedKeyUsageOID.CLIENT_AUTH not in extended:
        raise _bad(
            Reason.CERTIFICATE_USAGE, "The certificate is not for client authentication; call with an operator's."
        )


def _operator(extensions: x509.Extensions, trust_domain: str) -> str:
    try:
        alternatives = list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        alternatives = []
    if len(alternatives) != 1 or not isinstance(alternatives[0], x509.UniformResourceIdentifier):
        raise _bad(
            Reason.CERTIFICATE_IDENTITY,
            f"The client certificate does not name its operator by exactly one URI; {ANEW}.",
        )
    prefix = f"spiffe://{trust_domain}/operator/"
    uri = alternatives[0].value
    if not uri.startswith(prefix):
        raise _bad(
            Reason.CERTIFICATE_IDENTITY,
            "The client certificate is not for an operator of this broker's trust domain: call the broker that it is "
            f"for, or {ANEW}.",
        )
    try:
        return names.check_name(uri.removeprefix(prefix), "operator")
    except InvalidRequest as error:
        raise _bad(
            Reason.CERTIFICATE_IDENTITY, f"The client certificate does not hold a valid operator name; {ANEW}."
        ) from error


def _bad(reason: str, sentence: str) -> Unauthenticated:
    return Unauthenticated(reason, sentence)
