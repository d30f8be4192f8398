"""What a request must be besides decodable: worked out once for a message type, applied to each request.

Refused are unknown fields (a newer client may have meant them as a condition), enum numbers that are not declared,
unset oneofs (all of a request's oneofs must be set), NUL in a string. Protocol Buffers itself refuses bytes that are
not UTF-8 in a string. Depth needs no counting: request types do not contain themselves, and what is nested deeper
than the type allows is an unknown field.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from broker.core.errors import InvalidRequest
from broker.core.gate.method import Request
from broker.core.reasons import Reason
from broker.rpc.details import details

MAX_DEPTH = 64


def _refuse(reason: str, sentence: str, name: str) -> InvalidRequest:
    return InvalidRequest(reason, sentence, field=name)


def _nul(name: str) -> InvalidRequest:
    return _refuse(Reason.TEXT_INVALID, f"The field {name} contains a NUL character; leave it out.", name)


@dataclass(frozen=True, slots=True)
class Shape:
    """The checks of one message type; names are field names, ``nested`` has (name, repeated, required, shape)."""

    texts: tuple[str, ...]
    text_lists: tuple[str, ...]
    text_maps: tuple[str, ...]
    byte_maps: tuple[str, ...]  # texts to bytes
    enums: tuple[tuple[str, frozenset[int]], ...]
    oneofs: tuple[str, ...]
    nested: tuple[tuple[str, bool, bool, Shape], ...] = field(repr=False)

    def check(self, message: Any) -> None:
        """Return if the message is sound; else InvalidRequest naming the field."""
        if len(UnknownFieldSet(message)):
            raise InvalidRequest(
                Reason.FIELD_UNKNOWN,
                "The request has a field that this broker does not know; use a client of its version.",
            )
        for name in self.texts:
            if "\0" in getattr(message, name):
                raise _nul(name)
        for name, numbers in self.enums:
            if getattr(message, name) not in numbers:
                raise _refuse(
                    Reason.ENUM_UNKNOWN, f"The field {name} has a number that this broker does not know.", name
                )
        for name in self.oneofs:
            if message.WhichOneof(name) is None:
                raise _refuse(Reason.FIELD_MISSING, f"One of the choices of {name} must be set.", name)
        if self.text_lists or self.text_maps or self.byte_maps:
            self._check_many(message)
        if self.nested:
            self._check_nested(message)

    def _check_many(self, message: Any) -> None:
        for name in self.text_lists:
            if any("\0" in text for text in getattr(message, name)):
                raise _nul(name)
        for name in self.text_maps:
            if any("\0" in key or "\0" in value for key, value in getattr(message, name).items()):
                raise _nul(name)
        for name in self.byte_maps:
            if any("\0" in key for key in getattr(message, name)):
                raise _nul(name)

    def _check_nested(self, message: Any) -> None:
        for name, repeated, required, shape in self.nested:
            if repeated:
                for item in getattr(message, name):
                    shape.check(item)
            elif message.HasField(name):
                shape.check(getattr(message, name))
            elif required:
                raise _refuse(Reason.FIELD_MISSING, f"The field {name} is not set; set it and send again.", name)


class Plan:
    """How to decode one request type. Building one raises TypeError for a type the gate could not check."""

    def __init__(self, kind: type[Message]) -> None:
        self.kind = kind
        fields = kind.DESCRIPTOR.fields_by_name
        self.has_request_id = "request_id" in fields
        self.has_validate_only = "validate_only" in fields
        self._shape = _shape(kind.DESCRIPTOR, ())

    def decode(self, wire: bytes) -> Request:
        """The request in ``wire``; InvalidRequest with what is wrong."""
        try:
            message = self.kind.FromString(wire)
        except DecodeError as error:
            raise InvalidRequest(
                Reason.MESSAGE_INVALID, "The request is not a valid message of this method; use the broker's client."
            ) from error
        return self.sound(message)

    def sound(self, message: Any) -> Request:
        """The request that a decoded message is, however it was written; InvalidRequest with what is wrong."""
        self._shape.check(message)
        return Request(
            message=message,
            request_id=message.request_id if self.has_request_id else "",
            validate_only=self.has_validate_only and message.validate_only,
            essence=partial(self._essence, message),
            exact=partial(self._exact, message),
            details=partial(self._details, message),
        )

    def _essence(self, message: Any) -> bytes:
        """Deterministic, because a client may write a map in another order when it repeats itself."""
        return bytes(self.without_values(message).SerializeToString(deterministic=True))

    def _exact(self, message: Any) -> bytes:
        return bytes(self._lasting(message).SerializeToString(deterministic=True))

    def _details(self, message: Any) -> dict[str, str]:
        return dict(details(self._lasting(message)))

    def _lasting(self, message: Any) -> Any:
        """What of a request is the same whenever it is sent again."""
        bare = self.kind()
        bare.CopyFrom(self.without_values(message))
        for name in ("request_id", "validate_only"):
            if name in self.kind.DESCRIPTOR.fields_by_name:
                bare.ClearField(name)
        return bare

    def without_values(self, request: Any) -> Any:
        """The request with its secret values empty: a digest of it can be stored, and tells nothing of them.

        A digest is fast to make, so of a short value it is as good as the value itself. A script that keeps such a
        digest compares the values otherwise.
        """
        if not self._shape.byte_maps:
            return request
        bare = self.kind()
        bare.CopyFrom(request)
        for name in self._shape.byte_maps:
            values = getattr(bare, name)
            for key in list(values):
                values[key] = b""
        return bare


def _shape(kind: Any, above: tuple[Any, ...]) -> Shape:
    if kind in above or len(above) >= MAX_DEPTH:
        raise TypeError(f"{kind.full_name} contains itself; its depth has no limit")
    maps = [each for each in kind.fields if _is_map(each)]
    plain = [each for each in kind.fields if not _is_map(each)]
    texts = [each for each in plain if each.type == FieldDescriptor.TYPE_STRING]
    return Shape(
        texts=tuple(each.name for each in texts if not each.is_repeated),
        text_lists=tuple(each.name for each in texts if each.is_repeated),
        text_maps=tuple(_map(each) for each in maps if _value(each) == FieldDescriptor.TYPE_STRING),
        byte_maps=tuple(_map(each) for each in maps if _value(each) != FieldDescriptor.TYPE_STRING),
        enums=tuple(_enum(each) for each in plain if each.enum_type),
        oneofs=tuple(each.name for each in kind.oneofs if not _is_optional(each)),
        nested=tuple(_nested(each, (*above, kind)) for each in plain if each.message_type),
    )


def _is_map(each: Any) -> bool:
    return bool(each.message_type and each.message_type.GetOptions().map_entry)


def _is_optional(oneof: Any) -> bool:
    """Whether it only stands for one field that is marked optional (descriptor.proto, proto3_optional)."""
    return len(oneof.fields) == 1 and oneof.name == f"_{oneof.fields[0].name}"


def _value(each: Any) -> int:
    return int(each.message_type.fields_by_name["value"].type)


def _map(each: Any) -> str:
    key = each.message_type.fields_by_name["key"]
    if key.type != FieldDescriptor.TYPE_STRING or _value(each) not in {
        FieldDescriptor.TYPE_STRING,
        FieldDescriptor.TYPE_BYTES,
    }:
        raise TypeError(f"{each.full_name}: only maps of strings to strings or bytes are checked")
    return str(each.name)


def _enum(each: Any) -> tuple[str, frozenset[int]]:
    if each.is_repeated:
        raise TypeError(f"{each.full_name}: lists of enums are not checked")
    return each.name, frozenset(each.enum_type.values_by_number)


def _nested(each: Any, above: tuple[Any, ...]) -> tuple[str, bool, bool, Shape]:
    """A message that must choose one of several cannot be left out, unless it is itself one of several."""
    shape = _shape(each.message_type, above)
    required = bool(shape.oneofs) and each.containing_oneof is None and not each.is_repeated
    return each.name, each.is_repeated, required, shape
