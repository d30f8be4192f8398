"""A message field by field, as people read it: who approves a request sees what it says."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

WELL_KNOWN = {"google.protobuf.Duration", "google.protobuf.Timestamp"}


def details(message: Any, before: str = "") -> Iterator[tuple[str, str]]:
    """Each field that is set, by its name ("settings.address"), with its value in words."""
    for field, value in message.ListFields():
        name = before + field.name
        if field.message_type and field.message_type.GetOptions().map_entry:
            inner = field.message_type.fields_by_name["value"]
            for key in sorted(value):
                yield f"{name}[{key}]", _mapped(inner, value[key])
        elif field.is_repeated and not field.message_type:
            yield name, ", ".join(_text(field, one) for one in value)
        elif field.is_repeated:
            for place, one in enumerate(value, 1):
                yield from _nested(field, one, f"{name}[{place}]")
        elif field.message_type:
            yield from _nested(field, value, name)
        else:
            yield name, _text(field, value)


def _nested(field: Any, value: Any, name: str) -> Iterator[tuple[str, str]]:
    if field.message_type.full_name in WELL_KNOWN:
        yield name, value.ToJsonString()
        return
    inner = list(details(value, f"{name}."))
    yield from inner or [(name, "given, and empty")]


def _mapped(field: Any, value: Any) -> str:
    """Maps to bytes hold secret values, which are left out of the message before it comes here."""
    return "a secret value, which is not kept" if field.type == FieldDescriptor.TYPE_BYTES else str(value)


def _text(field: Any, value: Any) -> str:
    if field.enum_type:
        return str(field.enum_type.values_by_number[value].name)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return f"{len(value)} bytes with the SHA-256 {hashlib.sha256(value).hexdigest()}"
    if field.type == FieldDescriptor.TYPE_BOOL:
        return "yes" if value else "no"
    return str(value)
