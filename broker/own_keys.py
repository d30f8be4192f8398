"""The broker's own keys in the token: the audit key and two CAs, known by the files that ``init`` wrote."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from broker.config import Config
from broker.core.errors import NotFound, WrongState
from broker.core.kinds import KeyType, KeyUsage, Purpose
from broker.core.operators.authority import Authority
from broker.core.ports import Device, KeyRef
from broker.core.reasons import Reason

AUDIT_KEY = b"broker/audit/001"
OPERATOR_CA = b"broker/oper-ca/1"
SERVER_CA = b"broker/tls-ca/01"
"""CKA_IDs of the broker's own keys: in ``RESERVED_IDS``, so that no row can name them (HS-17)."""

INTERNAL_KEYS = {Purpose.AUDIT: AUDIT_KEY, Purpose.OPERATOR_CA: OPERATOR_CA, Purpose.SERVER_CA: SERVER_CA}
"""Each by its purpose, which is also the name of its file in the folder of certificates."""

_CAS = {Purpose.OPERATOR_CA: "broker operator CA", Purpose.SERVER_CA: "broker server CA"}


def make(config: Config, device: Device, now: datetime) -> None:
    """Make those that are missing, and the files that speak of them; what is there is kept."""
    for purpose, title in _CAS.items():
        if not (file := config.certificates / f"{purpose}.pem").exists():
            ring, hsm_id = device.keyring(purpose), INTERNAL_KEYS[purpose]
            write_private(file, Authority.create(ring, hsm_id, title, now)[1])
    if not (file := config.certificates / f"{Purpose.AUDIT}.pem").exists():
        spki = device.keyring(Purpose.AUDIT).generate(unmade(Purpose.AUDIT), exportable=False)
        key = serialization.load_der_public_key(spki or b"")
        pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        write_private(file, pem)


def refuse_taken(config: Config, device: Device) -> None:
    """WrongState ``HSM_TAKEN`` when the token holds a broker's own keys, and this folder is of no broker yet.

    Two brokers in one token would have the same CAs: an operator of the one would be an operator of the other.
    """
    if any(config.certificates.glob("*.pem")) or any(config.certificates.glob("rows.key*")):
        return  # a broker's, or one that an interrupted `init` has begun: that file comes before the keys
    for purpose in INTERNAL_KEYS:
        with suppress(NotFound):
            device.keyring(purpose).public_key(unmade(purpose))
            raise WrongState(
                Reason.HSM_TAKEN,
                "The token holds the keys of another broker, whose CAs and audit key this one would share; make a "
                "token of its own, or put that broker's folder `certificates` back.",
            )


def internal_key(config: Config, purpose: Purpose) -> KeyRef:
    """One of the broker's own keys, by the certificate or public key that ``init`` wrote into the folder.

    WrongState ``NOT_INITIALISED`` when the file is missing, so that a broker never makes itself a new identity, and
    ``FILE_DAMAGED`` when it is no PEM.
    """
    file = config.certificates / f"{purpose}.pem"
    try:
        pem = file.read_bytes()
    except OSError as error:
        raise _unread(file, error) from error
    try:
        key = (
            x509.load_pem_x509_certificate(pem).public_key()
            if b"BEGIN CERTIFICATE" in pem
            else serialization.load_pem_public_key(pem)
        )
    except ValueError as error:
        raise damaged(file) from error
    public = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return replace(unmade(purpose), public_key=public)


def unmade(purpose: Purpose) -> KeyRef:
    """One of the broker's own keys, of which no file says anything yet."""
    return KeyRef(hsm_id=INTERNAL_KEYS[purpose], type=KeyType.EC_P256, usage=KeyUsage.SIGN, public_key=None, name="")


def check_internal_keys(config: Config, device: Device) -> None:
    """WrongState ``HSM_NOT_OURS`` unless the token holds the very keys that the files of ``init`` speak of.

    So a CA that somebody else has put into the folder is not trusted.
    """
    for purpose in INTERNAL_KEYS:
        key = internal_key(config, purpose)
        if device.keyring(purpose).public_key(key) != key.public_key:
            raise WrongState(
                Reason.HSM_NOT_OURS,
                f"The token holds another key than {purpose}.pem, which this broker was initialised with, speaks of; "
                "put the right file or the right token back.",
            )


def authority(config: Config, device: Device, purpose: Purpose) -> Authority:
    """A CA that ``init`` made, ready to sign."""
    certificate = (config.certificates / f"{purpose}.pem").read_bytes()
    return Authority(device.keyring(purpose), internal_key(config, purpose), certificate)


def certificate(file: Path) -> x509.Certificate:
    """The certificate in a file; WrongState ``NOT_INITIALISED`` or ``FILE_DAMAGED``."""
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except OSError as error:
        raise _unread(file, error) from error
    except ValueError as error:
        raise damaged(file) from error


def _unread(file: Path, error: OSError) -> WrongState:
    return WrongState(
        Reason.NOT_INITIALISED,
        f"{file} cannot be read ({error.strerror}); put it back, or run `broker init` for a new folder first.",
    )


def damaged(file: Path) -> WrongState:
    """The refusal of a file in which there should be PEM."""
    return WrongState(Reason.FILE_DAMAGED, f"{file} is not PEM any more; put it back from a backup.")


def write_private(file: Path, content: bytes) -> None:
    """Write a 0600 file whole or not at all, never through a link that somebody put there."""
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        draft.replace(file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
