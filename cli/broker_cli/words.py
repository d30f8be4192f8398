"""The words of the command line for the enumerations of the wire, and messages as plain records.

The choices stand here as text, so that help and completion need no protobuf; a test holds them against the wire.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

KEY_TYPES = (
    "rsa-2048", "rsa-3072", "rsa-4096", "ec-p256", "ec-p384", "ec-p521", "ec-secp256k1", "ed25519",
    "aes-128", "aes-256",
)  # fmt: skip
KEY_USAGES = ("sign", "encrypt")
KEY_STATES = ("pending", "enabled", "disabled", "destroy-scheduled", "destroyed", "held")
SIGNATURE_ALGORITHMS = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "ES256K", "EdDSA",
)  # fmt: skip
SIGNATURE_ENCODINGS = ("der", "jose")
PRESETS = (
    "generic", "github", "gitlab", "azure-devops", "bitbucket", "circleci", "buildkite", "kubernetes",
)  # fmt: skip
SETTLEMENTS = ("keep", "discard")
ENCRYPTION_ALGORITHMS = ("AES-GCM", "RSA-OAEP-SHA1", "RSA-OAEP-SHA256")

_UPPER = ("SIGNATURE_ALGORITHM_", "ENCRYPTION_ALGORITHM_")


def wire_name(prefix: str, word: str | None) -> str:
    """The enum value's name: ``("KEY_TYPE", "ec-p256")`` gives ``KEY_TYPE_EC_P256``; no word, the unspecified one."""
    return f"{prefix}_{(word or 'unspecified').replace('-', '_').upper()}"


def word(enum: Any, number: int) -> str:
    """The word for an enum number: "" for the unspecified one, ``unknown-N`` for one we do not know."""
    value = enum.values_by_number.get(number)
    if value is None:
        return f"unknown-{number}"
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    text = str(value.name.removeprefix(prefix)).replace("_", "-")
    if number == 0:
        return ""
    if prefix in _UPPER:
        return "EdDSA" if text == "EDDSA" else text
    return text.lower()


def record(message: Any) -> dict[str, Any]:
    """A message as a plain mapping with the wire's field names: the stable JSON of the command.

    Enumerations are words, times RFC 3339 in UTC, durations seconds, bytes base64; a message that is not
    set is None, and of a oneof only what is set is there.
    """
    return {field.name: _value(message, field) for field in message.DESCRIPTOR.fields if _shown(message, field)}


def _shown(message: Any, field: Any) -> bool:
    return field.containing_oneof is None or message.HasField(field.name)


def _value(message: Any, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return dict(sorted(value.items()))
    if field.is_repeated:
        return [_single(item, field) for item in value]
    if field.message_type is not None and not message.HasField(field.name):
        return None
    return _single(value, field)


def _single(value: Any, field: Any) -> Any:
    if field.enum_type is not None:
        return word(field.enum_type, value)
    if field.message_type is not None:
        return _message(value, field.message_type.full_name)
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _message(value: Any, name: str) -> Any:
    if name == "google.protobuf.Timestamp":
        return value.ToJsonString()
    if name == "google.protobuf.Duration":
        return value.ToSeconds()
    return record(value)


def flat(entry: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level of names joined by dots; lists of texts become one text."""
    flat_: dict[str, Any] = {}
    for name, value in entry.items():
        if isinstance(value, Mapping):
            flat_ |= flat(value, f"{prefix}{name}.")
        else:
            flat_[f"{prefix}{name}"] = value
    return flat_
