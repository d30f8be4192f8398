"""Opening what the HSM wrapped with the openssl command line alone: no line of the project, no line of pyca."""

from __future__ import annotations

import subprocess
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

_OAEP = ("-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha1", "-pkeyopt", "rsa_mgf1_md:sha1")


def openssl(*arguments: str, given: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *arguments], input=given, capture_output=True, check=True, timeout=200).stdout


def opened_by_openssl(kek: rsa.RSAPrivateKey, blob: bytes, folder: Path) -> bytes:
    """The plaintext of a blob that was wrapped with OAEP-SHA-1 for this KEK, which goes through a file."""
    private, size = folder / "kek.pem", kek.key_size // 8
    private.write_bytes(kek.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    ephemeral = openssl("pkeyutl", "-decrypt", "-inkey", str(private), *_OAEP, given=blob[:size])
    return openssl("enc", "-d", "-id-aes256-wrap-pad", "-K", ephemeral.hex(), "-iv", "A65959A6", given=blob[size:])


def public_key_by_openssl(pkcs8: bytes) -> bytes:
    """The SubjectPublicKeyInfo of a PKCS#8 private key."""
    return openssl("pkey", "-inform", "DER", "-pubout", "-outform", "DER", given=pkcs8)
