"""The key transfer blob in its file, as Azure's BYOK specification has it and ``az keyvault key import`` takes it."""

from __future__ import annotations

import base64
import json
from functools import cache
from importlib.metadata import version

from broker.core.errors import WrongState
from broker.core.kinds import KeyType, KeyUsage, OaepHash
from broker.core.model import WrappingKey
from broker.core.reasons import Reason
from broker.targets.azure_key_vault import forms
from broker.targets.azure_key_vault.clouds import Tier

MIN_BLOB_BYTES = 256 + 24
"""The least there can be: one RSA-2048 block and an AES-128 key under AES-KWP (RFC 5649)."""


class TransferFiles:
    """``ports.Carries``, and what an import sends is the same."""

    def __init__(self, tier: Tier) -> None:
        self._tier = tier

    def check_transfer(self) -> None:
        """Out of the service such a key goes only under a release policy, which shows when it is confirmed."""

    def transfer_file(
        self, key_type: KeyType, usage: KeyUsage, blob: bytes, kek: WrappingKey, oaep_hash: OaepHash
    ) -> bytes:
        """The ``.byok`` file that ``az keyvault key import --byok-file`` takes."""
        forms.check_type(key_type, usage, self._tier)
        if oaep_hash is not OaepHash.SHA1 or not _is_whole(blob):
            raise WrongState(
                Reason.TARGET_REFUSED, "The blob is not an RSA-OAEP-SHA-1 block and AES-KWP; Azure opens nothing else."
            )
        return _file(kek.id, blob)


def _file(kid: str, blob: bytes) -> bytes:
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


def _is_whole(blob: bytes) -> bool:
    """Whether its length can be that of a transfer blob: an RSA block and a multiple of eight bytes."""
    return len(blob) >= MIN_BLOB_BYTES and len(blob) % 8 == 0
