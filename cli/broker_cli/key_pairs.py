"""Key pairs and certificate requests made on this machine; a private key never crosses the wire."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from broker_cli.refusal import Exit, Refusal


def fresh_key() -> tuple[bytes, bytes]:
    """(private key, PKCS#8 PEM; certificate request, PKCS#10 PEM) for a new EC P-256 key."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem, _request(key)


def request_for(key_pem: bytes) -> bytes:
    """A certificate request (PKCS#10, PEM) for an EC P-256 key that exists."""
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError):
        raise Refusal(
            "KEY_INVALID", "The private key is not an unencrypted PEM key; put back the one of the profile."
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Refusal(
            "KEY_INVALID",
            "The private key is not an EC P-256 key, and no other is renewed; ask an administrator for a fresh "
            "profile (`broker operator issue NAME`).",
        )
    return _request(key)


def check_request(pem: bytes) -> bytes:
    """Return a request that somebody else made, if it is one and nothing more."""
    if b"PRIVATE KEY" in pem:
        raise Refusal(
            "CSR_HOLDS_KEY", "That file holds a private key; only the request may be handed over.", Exit.USAGE
        )
    try:
        x509.load_pem_x509_csr(pem)
    except ValueError:
        raise Refusal(
            "CSR_INVALID", "The request is not PKCS#10 in PEM; make it with openssl req -new.", Exit.USAGE
        ) from None
    return pem


@contextmanager
def folder_in_the_making(out: Path) -> Iterator[Path]:
    """A private folder that becomes ``out`` when all went well, and is gone when it did not."""
    if out.exists() or out.is_symlink():
        raise Refusal("FOLDER_EXISTS", f"{out} exists; name a folder that does not.", Exit.CONFLICT)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as parent:
            folder = Path(parent) / out.name
            folder.mkdir(mode=0o700)
            yield folder
            folder.rename(out)
    except OSError as fault:
        raise Refusal("FOLDER_NOT_WRITTEN", f"{out} cannot be made: {fault.strerror}.") from None


def _request(key: ec.EllipticCurvePrivateKey) -> bytes:
    # The broker takes the public key only; a name in the request would decide nothing.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker operator")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)
