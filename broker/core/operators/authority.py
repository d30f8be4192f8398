"""A certificate authority whose key is in the HSM (RFC 5280). Each certificate is verified before it leaves."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from broker.core import ports
from broker.core.errors import InvalidRequest, Unavailable, WrongState
from broker.core.kinds import KeyType, KeyUsage
from broker.core.operators.hsm_key import HsmKey, p256
from broker.core.ports import KeyRef
from broker.core.reasons import Reason

MAX_CSR_BYTES = 8 * 1024
MAX_SERVER_NAMES = 16
CA_LIFETIME = timedelta(days=3652)
BACKDATED = timedelta(seconds=60)
"""How far a clock may be behind this one and still take a new certificate."""

_DNS_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*")


class Authority:
    """Signs with one internal EC P-256 key. ``certificate`` is its self-signed CA certificate, PEM."""

    certificate: bytes

    def __init__(self, hsm: ports.Hsm, key: KeyRef, certificate: bytes) -> None:
        self.certificate = certificate
        self._ca = _certificate_of(key, certificate)
        self._key = HsmKey(hsm, key)

    @staticmethod
    def create(hsm: ports.Hsm, hsm_id: bytes, common_name: str, now: datetime) -> tuple[KeyRef, bytes]:
        """Make the key if it is not there, and a self-signed CA certificate (10 years, path length 0), PEM."""
        key = KeyRef(hsm_id=hsm_id, type=KeyType.EC_P256, usage=KeyUsage.SIGN, public_key=None, name="")
        return Authority.make(hsm, key, common_name, now)

    @staticmethod
    def make(hsm: ports.Hsm, key: KeyRef, common_name: str, now: datetime) -> tuple[KeyRef, bytes]:
        """As ``create``, for a key of any version."""
        spki = hsm.generate(key, exportable=False)
        key = replace(key, public_key=spki)
        signing = HsmKey(hsm, key)
        public_key = signing.public_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        start = now.replace(microsecond=0) - BACKDATED
        draft = (
            _draft(public_key, name, name, start, start + CA_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        )
        certificate = draft.sign(signing, SHA256())
        _verify(certificate, certificate)
        return key, certificate.public_bytes(Encoding.PEM)

    def link(self, successor_pem: bytes) -> bytes:
        """The successor's key, certified by this CA, PEM: who trusts this CA alone follows to the successor.

        Both have one name, so the link is self-issued and no step of the path (RFC 5280 4.2.1.9, RFC 4210 4.4).
        """
        successor = x509.load_pem_x509_certificate(successor_pem)
        if successor.subject != self._ca.subject:
            raise WrongState(Reason.CA_CERTIFICATE_INVALID, "A CA's successor has the same name; this one has another.")
        public_key = p256(successor.public_key())
        start = max(successor.not_valid_before_utc, self._ca.not_valid_before_utc)
        end = min(successor.not_valid_after_utc, self._ca.not_valid_after_utc)
        self._refuse_over(start, end)
        draft = (
            _draft(public_key, successor.subject, self._ca.subject, start, end)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(_authority_key_identifier(self._ca), critical=False)
        )
        certificate = draft.sign(self._key, SHA256())
        _verify(certificate, self._ca)
        return certificate.public_bytes(Encoding.PEM)

    def _refuse_over(self, start: datetime, end: datetime) -> None:
        if end <= start:
            raise WrongState(
                Reason.CA_EXPIRED,
                f"The CA certificate ended {self._ca.not_valid_after_utc:%Y-%m-%d %H:%M} UTC by this host's clock, so "
                "it signs nothing any more. If the clock is right, start the broker, which makes the next CA by "
                "itself; every caller then needs the new CA file (`broker authority trust`).",
            )

    def client(self, csr_pem: bytes, uri: str, not_before: datetime, ttl: timedelta) -> tuple[bytes, str]:
        """A client-auth leaf for the CSR's public key and one URI SAN; (PEM, serial hex). All else is built here."""
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        return self._leaf(csr_pem, names, ExtendedKeyUsageOID.CLIENT_AUTH, not_before, ttl)

    def server(self, csr_pem: bytes, names: list[str], not_before: datetime, ttl: timedelta) -> tuple[bytes, str]:
        """A server-auth leaf for DNS names and IP addresses; (PEM, serial hex)."""
        alternatives = x509.SubjectAlternativeName(check_server_names(names))
        return self._leaf(csr_pem, alternatives, ExtendedKeyUsageOID.SERVER_AUTH, not_before, ttl)

    def _leaf(
        self,
        csr_pem: bytes,
        names: x509.SubjectAlternativeName,
        usage: x509.ObjectIdentifier,
        not_before: datetime,
        ttl: timedelta,
    ) -> tuple[bytes, str]:
        public_key = public_key_of(csr_pem)
        start = max(not_before.replace(microsecond=0), self._ca.not_valid_before_utc)
        end = min(start + ttl, self._ca.not_valid_after_utc)
        self._refuse_over(start, end)
        draft = (
            # With an empty subject the names are critical (RFC 5280 4.2.1.6), and no one can read a CN by mistake.
            _draft(public_key, x509.Name([]), self._ca.subject, start, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(names, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(_authority_key_identifier(self._ca), critical=False)
        )
        certificate = draft.sign(self._key, SHA256())
        _verify(certificate, self._ca)
        return certificate.public_bytes(Encoding.PEM), f"{certificate.serial_number:x}"


def public_key_of(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """The P-256 key that a PKCS#10 request (RFC 2986, PEM) proves to hold; InvalidRequest ``CSR_INVALID`` else."""
    if len(csr_pem) > MAX_CSR_BYTES:
        raise _csr_invalid(f"it is longer than {MAX_CSR_BYTES // 1024} KiB")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        public_key = p256(request.public_key())
        signed = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise _csr_invalid("it is not a PKCS#10 request in PEM for an EC P-256 key") from error
    if not signed:
        raise _csr_invalid("its signature does not match its key")
    return public_key


def _csr_invalid(why: str) -> InvalidRequest:
    return InvalidRequest(Reason.CSR_INVALID, f"The certificate request was not taken: {why}.")


def _certificate_of(key: KeyRef, pem: bytes) -> x509.Certificate:
    try:
        [certificate] = x509.load_pem_x509_certificates(pem)  # whoever trusts it would trust what follows it too
        own = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == key.public_key
    except (ValueError, UnsupportedAlgorithm) as error:
        raise WrongState(Reason.CA_CERTIFICATE_INVALID, "The CA certificate is not one certificate in PEM.") from error
    if not own:
        raise WrongState(
            Reason.CA_KEY_MISMATCH,
            "The CA certificate does not belong to the CA key in the HSM; put back the certificate, or the token, "
            "that does.",
        )
    return certificate


def _authority_key_identifier(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def check_server_names(names: list[str]) -> list[x509.GeneralName]:
    """The names as a certificate has them; InvalidRequest ``SERVER_NAME_INVALID`` if one is none, or they are many."""
    if not 1 <= len(names) <= MAX_SERVER_NAMES:
        raise InvalidRequest(Reason.SERVER_NAME_INVALID, f"A server has 1 to {MAX_SERVER_NAMES} names.")
    return [_server_name(name) for name in names]


def _server_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        pass
    if not _DNS_NAME.fullmatch(name):
        raise InvalidRequest(
            Reason.SERVER_NAME_INVALID,
            f"The server name {name[:80]!a} is not valid: give a DNS name in lower case (xn--… for other letters) "
            "or an IP address, without a scheme, a port or a path.",
        )
    return x509.DNSName(name)


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _draft(
    public_key: ec.EllipticCurvePublicKey, subject: x509.Name, issuer: x509.Name, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())  # 159 random bits: unguessable and never twice
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _verify(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise Unavailable(
            Reason.HSM_FAULT,
            "The HSM's signature on a new certificate did not verify, so it was withheld. Check the device.",
        ) from error
