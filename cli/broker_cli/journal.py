"""Reads audit journals without trusting them (docs/audit-format.md).

A journal is a file of lines; each line is one JSON object in canonical form, ASCII, at most ``MAX_LINE`` bytes. This
module knows the format from its description alone and shares no code with the broker that writes it.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

MAX_LINE = 64 * 1024
"""Sixteen times what the broker writes at most; anything longer is not a journal."""

SUFFIX = ".jsonl"
PACKED = (".gz", ".zst", ".xz", ".bz2", ".zip")
BOM = b"\xef\xbb\xbf"
_FOREIGN = {
    b"\x1f\x8b": "it is packed (gzip): unpack it first",
    b"\x28\xb5\x2f\xfd": "it is packed (zstd): unpack it first",
    b"\xfd7zXZ": "it is packed (xz): unpack it first",
    b"BZh": "it is packed (bzip2): unpack it first",
    b"PK\x03\x04": "it is packed (zip): unpack it first",
    b"\xff\xfe": "it was turned into UTF-16 (PowerShell's > does that): copy the file again, as it is",
    b"\xfe\xff": "it was turned into UTF-16: copy the file again, as it is",
}
"""How files begin that a journal was made into."""
CHAIN = re.compile(r"[!-~]{1,128}", re.ASCII)
HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", re.ASCII)
SIGNATURE = re.compile(r"(?:[0-9a-f]{2}){8,72}", re.ASCII)

_TEXTS = (
    "chain", "prev", "time", "phase", "call", "rpc", "request", "principal", "authn", "credential", "peer", "resource",
    "decision", "outcome", "reason",
)  # fmt: skip
ENTRY: dict[str, type] = {
    "v": int, "kind": str, "seq": int, "policies": list, "policy_version": int, "facts": dict,
    **dict.fromkeys(_TEXTS, str),
}  # fmt: skip
HEAD: dict[str, type] = {
    "v": int, "kind": str, "seq": int, "head_seq": int,
    **dict.fromkeys(("chain", "prev", "time", "head_hash", "signature"), str),
}  # fmt: skip


class NotAJournalError(Exception):
    """Why a line (or a file) cannot be a journal's; the text quotes nothing of it."""


class ConvertedError(NotAJournalError):
    """What a journal was made into: nobody need have changed a record of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line where it was found. ``record`` is None when ``fault`` says why it cannot be read."""

    path: Path
    number: int  # from 1
    raw: bytes  # without the newline
    record: dict[str, Any] | None
    fault: str = ""
    torn: bool = False  # no newline ends it
    converted: bool = False  # a byte order mark before it or a carriage return behind it is left out of ``raw``


def parse(raw: bytes) -> dict[str, Any]:
    """The record in a line, every field of the expected type; ``NotAJournalError`` for anything else."""
    if len(raw) > MAX_LINE:
        raise NotAJournalError(f"the line is longer than {MAX_LINE} bytes")
    record = _decode(raw)
    if not isinstance(record, dict):
        raise NotAJournalError("the line is not a JSON object")
    _check_fields(record)
    if json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode() != raw:
        raise NotAJournalError("the line is not in canonical form")
    return record


def lines(path: Path) -> Iterator[Line]:
    """Every line of a journal file, also those that cannot be read; stops after one that is too long or torn.

    ``ConvertedError`` for a file that is something else as a whole. What a conversion of text has put around a line is
    taken off again, for no line of a journal holds it: what is left is what was written, or it does not verify.
    """
    with open_regular(path) as file:
        start = file.read(max(map(len, _FOREIGN)))
        for sign, what in _FOREIGN.items():
            if start.startswith(sign):
                raise ConvertedError(what)
        marked = start.startswith(BOM)
        file.seek(len(BOM) if marked else 0)
        number = 0
        while raw := file.readline(MAX_LINE + 3):
            number += 1
            if not raw.endswith(b"\n"):
                yield _unended(path, number, raw)
                return
            whole = raw[:-1].removesuffix(b"\r")
            yield _line(path, number, whole, converted=len(whole) < len(raw) - 1 or (marked and number == 1))


def files(places: tuple[Path, ...]) -> list[Path]:
    """The journal files among ``places``: files as they are, folders searched (not below) for ``*.jsonl``.

    With those that somebody has packed, which nobody can read: left out, they would look like records removed.
    """
    found: dict[Path, Path] = {}  # one file named twice is read once
    for place in places:
        for path in _within(place) if place.is_dir() else [place]:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _within(folder: Path) -> list[Path]:
    plain = sorted(folder.glob(f"*{SUFFIX}"))
    packed = (path for path in sorted(folder.glob(f"*{SUFFIX}.*")) if path.suffix in PACKED)
    return plain + [path for path in packed if path.with_suffix("") not in plain]


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; never waits on a pipe or a device put in its place."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotAJournalError("it is not a regular file")
    return os.fdopen(descriptor, "rb")


def _unended(path: Path, number: int, raw: bytes) -> Line:
    if len(raw) > MAX_LINE:
        fault = f"the line is longer than {MAX_LINE} bytes; nothing after it was read"
        return Line(path=path, number=number, raw=raw, record=None, fault=fault)
    return Line(path=path, number=number, raw=raw, record=None, fault="the last line is not whole", torn=True)


def _line(path: Path, number: int, raw: bytes, *, converted: bool) -> Line:
    try:
        return Line(path=path, number=number, raw=raw, record=parse(raw), converted=converted)
    except NotAJournalError as fault:
        return Line(path=path, number=number, raw=raw, record=None, fault=str(fault), converted=converted)


def _decode(raw: bytes) -> object:
    try:
        return json.loads(raw.decode("ascii"), parse_int=_integer, parse_float=_refuse, parse_constant=_refuse)
    except UnicodeDecodeError:
        raise NotAJournalError("the line is not ASCII") from None
    except RecursionError:
        raise NotAJournalError("the line is nested too deeply") from None
    except ValueError:
        raise NotAJournalError("the line is not JSON") from None


def _integer(digits: str) -> int:
    if len(digits) > 19:
        raise NotAJournalError("a number in the line is too big")
    return int(digits)


def _refuse(_: str) -> None:
    raise NotAJournalError("a number in the line is not an integer")


def _check_fields(record: dict[str, Any]) -> None:
    kind = record.get("kind")
    shape = ENTRY if kind == "entry" else HEAD if kind == "head" else None
    if shape is None:
        raise NotAJournalError("the line is neither an entry nor a head")
    if record.keys() != shape.keys():
        raise NotAJournalError("the fields are not those of its kind")
    wrong = [name for name, kind_ in shape.items() if type(record[name]) is not kind_]
    if wrong:
        raise NotAJournalError(f"the field {wrong[0]} has the wrong type")
    if record["v"] != 1:
        raise NotAJournalError("the format version is not 1")
    if not CHAIN.fullmatch(record["chain"]):
        raise NotAJournalError("the chain's name has other than printable ASCII characters, or more than 128")
    if not HASH.fullmatch(record["prev"]):
        raise NotAJournalError("the field prev is not a SHA-256 in lower-case hex")
    moment(record["time"])
    if kind == "entry":
        _check_entry(record)
    else:
        _check_head(record)


def _check_entry(record: dict[str, Any]) -> None:
    if any(type(policy) is not str for policy in record["policies"]):
        raise NotAJournalError("the field policies is not a list of texts")
    if any(type(value) not in {str, int} for value in record["facts"].values()):
        raise NotAJournalError("a fact is neither a text nor an integer")


def _check_head(record: dict[str, Any]) -> None:
    if not HASH.fullmatch(record["head_hash"]):
        raise NotAJournalError("the field head_hash is not a SHA-256 in lower-case hex")
    if not SIGNATURE.fullmatch(record["signature"]):
        raise NotAJournalError("the field signature is not lower-case hex")


def moment(text: str) -> datetime:
    """The time in a record: ISO 8601, microseconds, UTC written as +00:00."""
    if not STAMP.fullmatch(text):
        raise NotAJournalError("a time is not UTC with microseconds")
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise NotAJournalError("a time does not exist") from None
