"""The key transfer blob in its file, as Azure's BYOK specification has it and ``az keyvault key import`` takes it."""

from __future__ import annotations

import base64
import json
from functools import cache
from importlib.metadata import version

MIN_BLOB_BYTES = 256 + 24
"""The least there can be: one RSA-2048 block and an AES-128 key under AES-KWP (RFC 5649)."""


def transfer_file(kid: str, blob: bytes) -> bytes:
    """The file's bytes; ``kid`` is the versioned id of the KEK that ``blob`` is wrapped for."""
    return json.dumps({
        "schema_version": "1.0.0",
        "header": {"kid": kid, "alg": "dir", "enc": "CKM_RSA_AES_KEY_WRAP"},
        "ciphertext": base64.urlsafe_b64encode(blob).rstrip(b"=").decode("ascii"),
        "generator": _generator(),
    }).encode("ascii")  # fmt: skip


@cache
def _generator() -> str:
    """Read from the installed package once, since that takes longer than the HSM's wrap."""
    return f"hsm-broker {version('hsm-broker')}; PKCS#11 token"


def is_whole(blob: bytes) -> bool:
    """Whether its length can be that of a transfer blob: an RSA block and a multiple of eight bytes."""
    return len(blob) >= MIN_BLOB_BYTES and len(blob) % 8 == 0
