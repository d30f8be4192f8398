"""Records and rows: each field of a record is the column of the same name, and one mapping serves both ways.

Texts, enumerations, labels and settings are text (the last two as canonical JSON), times are whole microseconds
since 1970 in UTC, bytes are a blob. A row that does not fit its record is refused by name and never half read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from operator import attrgetter
from types import MappingProxyType, NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from broker.core.errors import InvalidRequest, WrongState
from broker.core.model import Record
from broker.core.reasons import Reason
from broker.core.records import RECORDS

R = TypeVar("R", bound=Record)

NAMES: dict[type[Any], str] = {kind: one.table for kind, one in RECORDS.items()}
"""The tables, in the order of their declarations."""

MAX_CELL = 1024 * 1024
"""No text or blob in the database is longer; a longer one was not written by the broker."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
RANK_BITS = 32

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
_quoted = json.encoder.encode_basestring_ascii
INT64 = range(-(2**63), 2**63)

Cell = str | int | bytes | None


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a record as a column. ``sql`` is the Python type of the cell: str, int or bytes."""

    name: str
    sql: type
    nullable: bool
    encode: Callable[[Any], Cell]
    decode: Callable[[Any], Any]


def row_of(record: Record) -> dict[str, Cell]:
    """The cells of a record by column name; InvalidRequest ``VALUE_NOT_STORABLE`` for what a database may not keep."""
    values, encoders = _READERS[type(record)]
    return {name: encode(value) for (name, encode), value in zip(encoders, values(record), strict=True)}


def record_of(kind: type[R], row: Sequence[Cell]) -> R:
    """The record in a row whose cells are in the order of the fields; WrongState ``ROW_DAMAGED`` if it is none."""
    names, decoders = _MAKERS[kind]
    try:
        return kind(**dict(zip(names, [decode(cell) for decode, cell in zip(decoders, row, strict=True)], strict=True)))
    except (TypeError, ValueError, KeyError, OverflowError, RecursionError) as cause:
        raise WrongState(
            Reason.ROW_DAMAGED,
            f"The stored {kind.__name__} {shown(kind, row)} cannot be read by this program, though a broker wrote "
            "it. Start the newest release that has used this database; nothing is lost by that.",
            kind=kind.__name__,
        ) from cause


def rank(record: Any) -> int:
    """How new a record is among those that have had its name: the younger one, then the higher revision."""
    created = _CREATED[type(record)]
    return (microseconds(getattr(record, created)) << RANK_BITS if created else 0) + int(record.revision)


def rank_of(kind: type[Any], row: Sequence[Any]) -> int:
    """The rank of the record in a genuine row."""
    created, places = _CREATED[kind], PLACES[kind]
    return (row[places[created]] << RANK_BITS if created else 0) + int(row[places["revision"]])


def storable(value: str | int) -> str | int:
    """A value to look for, as a cell. InvalidRequest ``VALUE_NOT_STORABLE`` as for ``row_of``."""
    return _storable_text(value) if isinstance(value, str) else _storable_integer(value)


def _storable_text(text: str) -> str:
    if len(text) <= MAX_CELL and text.isascii() and "\0" not in text:
        return str.__str__(text)
    if len(text) > MAX_CELL or "\0" in text or not _unicode(text):
        raise InvalidRequest(
            Reason.VALUE_NOT_STORABLE, "A text is longer than 1 MiB or holds NUL or half a character; change it."
        )
    return str.__str__(text)


def _unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _storable_integer(number: int) -> int:
    if number not in INT64:
        raise InvalidRequest(Reason.VALUE_NOT_STORABLE, "A number does not fit in 64 bits; use a smaller one.")
    return int(number)


def _storable_bytes(blob: bytes) -> bytes:
    if len(blob) > MAX_CELL:
        raise InvalidRequest(Reason.VALUE_NOT_STORABLE, "A value is longer than 1 MiB; shorten it.")
    return bytes(blob)


def _text(cell: Any) -> str:
    if type(cell) is not str or len(cell) > MAX_CELL:
        raise TypeError
    return cell


def _integer(cell: Any) -> int:
    if type(cell) is not int:
        raise TypeError
    return cell


def _bytes(cell: Any) -> bytes:
    if type(cell) is not bytes or len(cell) > MAX_CELL:
        raise TypeError
    return cell


def _boolean(cell: Any) -> bool:
    return {0: False, 1: True}[_integer(cell)]


def microseconds(moment: datetime) -> int:
    """A moment as a cell."""
    return (moment - EPOCH) // MICROSECOND


def instant(cell: Any) -> datetime:
    """The moment of so many microseconds."""
    return EPOCH + timedelta(microseconds=_integer(cell))


def _json(value: Any) -> str:
    return _storable_text(_CANONICAL(value))


def _json_of_mapping(value: Mapping[str, str]) -> str:
    """As ``_json`` of a mapping of texts; that makes an encoder for each value, which takes far longer."""
    return f"{{{','.join([f'{_quoted(name)}:{_quoted(text)}' for name, text in sorted(value.items())])}}}"


def _json_of_texts(value: tuple[str, ...]) -> str:
    """As ``_json`` of a list of texts."""
    return f"[{','.join(map(_quoted, value))}]"


def _mapping(cell: Any) -> Mapping[str, str]:
    """Read-only, since all who read an equal row share it."""
    found = json.loads(_text(cell))
    if type(found) is not dict or any(type(value) is not str for value in found.values()):
        raise TypeError
    return MappingProxyType(found)


def _texts(cell: Any) -> tuple[str, ...]:
    found = json.loads(_text(cell))
    if type(found) is not list or any(type(value) is not str for value in found):
        raise TypeError
    return tuple(found)


def _nested(kind: type[Any]) -> _Kind:
    """A tuple of records within a record, as a JSON list of their cells."""
    inner = _fields(kind)

    def decode(cell: Any) -> tuple[Any, ...]:
        found = json.loads(_text(cell))
        if type(found) is not list or any(type(each) is not dict or len(each) != len(inner) for each in found):
            raise TypeError
        return tuple(kind(**{field.name: field.decode(each[field.name]) for field in inner}) for each in found)

    return (
        str,
        lambda value: _json([{f.name: f.encode(getattr(each, f.name)) for f in inner} for each in value]),
        decode,
    )


_Kind = tuple[type, Callable[[Any], Cell], Callable[[Any], Any]]

_KINDS: dict[object, _Kind] = {
    str: (str, _storable_text, _text),
    int: (int, _storable_integer, _integer),
    bool: (int, int, _boolean),
    bytes: (bytes, _storable_bytes, _bytes),
    datetime: (int, microseconds, instant),
    Mapping: (str, lambda value: _storable_text(_json_of_mapping(value)), _mapping),
    tuple: (str, lambda value: _storable_text(_json_of_texts(value)), _texts),
}


def _field(name: str, hint: Any) -> Field:
    nullable = isinstance(hint, UnionType)
    if nullable:
        (hint,) = [part for part in get_args(hint) if part is not NoneType]
    sql, encode, decode = _kind(hint)
    if nullable:
        return Field(name, sql, nullable, _nullable(encode), _nullable(decode))
    return Field(name, sql, nullable, encode, decode)


def _kind(hint: Any) -> _Kind:
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return _enumeration(hint)
    if get_origin(hint) is tuple and is_dataclass(get_args(hint)[0]):
        return _nested(get_args(hint)[0])
    return _KINDS[get_origin(hint) or hint]


def _enumeration(kind: type[StrEnum]) -> _Kind:
    members = {member.value: member for member in kind}
    return str, lambda value: str(value.value), lambda cell: members[_text(cell)]


def _nullable(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else convert(value)


def _fields(kind: type[Any]) -> tuple[Field, ...]:
    hints = get_type_hints(kind)
    return tuple(_field(field.name, hints[field.name]) for field in fields(kind))


def key_in(kind: type[Any], row: Sequence[Any]) -> tuple[Any, ...]:
    """The primary key in a row."""
    return tuple([row[place] for place in _KEY_PLACES[kind]])


def shown(kind: type[Any], row: Sequence[Cell]) -> str:
    """The primary key in a row, as a message may have it."""
    return shown_key(key_in(kind, row))


def shown_key(key: Sequence[Any]) -> str:
    """A primary key, as a message may have it."""
    return "/".join(ascii(part)[:80] for part in key)


FIELDS: dict[type[Any], tuple[Field, ...]] = {kind: _fields(kind) for kind in RECORDS}
"""The columns of each kind of record, in the order of its fields."""

PLACES = {kind: {field.name: place for place, field in enumerate(found)} for kind, found in FIELDS.items()}
"""Where in a row each field of a kind stands."""

_KEY_PLACES = {kind: [PLACES[kind][name] for name in one.key] for kind, one in RECORDS.items()}

_CREATED = {
    kind: next((field.name for field in found if field.name in {"created_at", "started_at"}), "")
    for kind, found in FIELDS.items()
}
_READERS = {
    kind: (attrgetter(*(field.name for field in found)), tuple((field.name, field.encode) for field in found))
    for kind, found in FIELDS.items()
}
_MAKERS = {
    kind: (tuple(field.name for field in found), tuple(field.decode for field in found))
    for kind, found in FIELDS.items()
}
