"""Keys as the transit engine's import takes them."""

from __future__ import annotations

import base64
from types import MappingProxyType
from typing import Any

from broker.core.kinds import KeyType, OaepHash

TYPES = MappingProxyType({
    KeyType.RSA_2048: "rsa-2048",
    KeyType.RSA_3072: "rsa-3072",
    KeyType.RSA_4096: "rsa-4096",
    KeyType.EC_P256: "ecdsa-p256",
    KeyType.EC_P384: "ecdsa-p384",
    KeyType.EC_P521: "ecdsa-p521",
    KeyType.AES_128: "aes128-gcm96",
    KeyType.AES_256: "aes256-gcm96",
})  # fmt: skip


def upload(blob: bytes, oaep_hash: OaepHash) -> dict[str, Any]:
    """The wrapped key of an import."""
    return {"ciphertext": b64(blob), "hash_function": oaep_hash.value.upper()}


def first(key_type: KeyType) -> dict[str, Any]:
    """What a new key is made as; nothing of it can be set by any caller."""
    flags = ("allow_rotation", "exportable", "allow_plaintext_backup", "derived")
    return {"type": TYPES[key_type], **dict.fromkeys(flags, False)}


def b64(content: bytes) -> str:
    """As the engine writes bytes."""
    return base64.b64encode(content).decode("ascii")
