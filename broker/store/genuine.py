"""Tells heads that the audit key has signed, by the public key that ``init`` wrote into the certificates' folder."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization

from broker.core.audit.heads import signed_by
from broker.core.errors import WrongState
from broker.core.model import AuditHead
from broker.core.reasons import Reason
from broker.store.restored import Genuine


def genuine_by(file: Path) -> Genuine:
    """By the PEM in ``file``, which is looked for when the first head is: ``init`` makes it late. Without it, none."""
    found: list[Genuine] = []

    def genuine(head: AuditHead) -> bool:
        if not found and file.exists():
            found.append(signed_by(_spki(file)))
        return any(each(head) for each in found)

    return genuine


def _spki(file: Path) -> bytes:
    try:
        key = serialization.load_pem_public_key(file.read_bytes())
    except ValueError as error:
        raise WrongState(Reason.FILE_DAMAGED, f"{file} is not PEM any more; put it back from a backup.") from error
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
