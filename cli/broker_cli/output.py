"""Results on standard output: a table for people, JSON, YAML, CSV or shell variables for programs."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import string
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import update_wrapper
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click

from broker_cli import files
from broker_cli.refusal import Exit, Refusal
from broker_cli.screen import chat, plain, plain_lines
from broker_cli.words import flat

FORMATS = ("table", "json", "yaml", "env", "csv")
Entry = Mapping[str, Any]
NO_COLOURS: Mapping[str, str] = MappingProxyType({})
_PLAIN = frozenset(string.ascii_letters + string.digits + " _-./:=,@+")
_WORD = re.compile(r"[^\s\"';=\\]+")
_FORMULA = frozenset("=+-@\t\r")
_FRACTION = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.\d+(?:Z|\+00:00)", re.ASCII)


def formatted(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--format`` and hand it an ``Output`` as ``out``."""

    def run(*args: Any, format_: str | None, **options: Any) -> Any:
        return command(*args, out=Output(format_), **options)

    option = click.option(
        "--format", "format_", type=click.Choice(FORMATS), envvar="BROKER_FORMAT", help="How results are written."
    )
    return option(update_wrapper(run, command))


@dataclass(frozen=True, slots=True)
class Output:
    """Writes results; ``asked`` is the format that was asked for, None when none was."""

    asked: str | None

    @property
    def format(self) -> str:
        """The format in force."""
        return self.asked or "table"

    def one(self, kind: str, entry: Entry) -> None:
        """One result. ``kind`` prefixes shell variables, so that none can be taken for another (or for PATH)."""
        if self.format == "table":
            _table(("field", "value"), [row for name, value in flat(entry).items() for row in _rows(name, value)])
        elif self.format == "env":
            _env(kind, entry)
        elif self.format == "csv":
            _csv([entry])
        else:
            self._document(dict(entry))

    def many(
        self, kind: str, entries: Sequence[Entry], columns: Sequence[str], colours: Mapping[str, str] = NO_COLOURS
    ) -> None:
        """A list of results; ``columns`` are the fields that a table shows (``a.b`` reaches into a nested one).

        ``colours``: what a whole cell is written in on a terminal, by its text.
        """
        if self.format == "table":
            _table(columns, [[_cell(flat(entry).get(name, "")) for name in columns] for entry in entries], colours)
        elif self.format == "env":
            sys.stdout.write(f"{kind.upper()}_COUNT={len(entries)}\n")
            for number, entry in enumerate(entries):
                _env(f"{kind}_{number}", entry)
        elif self.format == "csv":
            _csv(entries, columns)
        else:
            self._document([dict(entry) for entry in entries])

    def _document(self, content: Any) -> None:
        if self.format == "json":
            sys.stdout.write(json.dumps(content, indent=2) + "\n")
            return
        import yaml  # noqa: PLC0415  only when asked for

        yaml.safe_dump(content, sys.stdout, sort_keys=False, allow_unicode=False)

    def raw(self, kind: str, content: bytes, entry: Entry, target: str | None, *, secret: bool, reveal: bool) -> None:
        """Bytes: raw into ``target`` or a pipe, inside ``entry`` (base64) for a terminal or an explicit format.

        A secret reaches a terminal only when revealing it was asked for; ``check_raw`` says so before it is fetched.
        """
        if target is not None:
            files.create(Path(target), content)
            chat(f"{len(content)} bytes written to {target}.")
        elif self.asked is None and secret and reveal and sys.stdout.isatty():
            sys.stdout.write(plain_lines(content.decode(errors="backslashreplace")) + "\n")
        elif self.asked is None and not sys.stdout.isatty():
            sys.stdout.flush()
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
        else:
            self.one(kind, entry)


def check_raw(target: str | None, *, reveal: bool) -> None:
    """Refuse early what would show a secret on a terminal by accident, or could not be written."""
    if target is None and sys.stdout.isatty() and not reveal:
        raise Refusal(
            "WOULD_BE_SHOWN",
            "A plaintext is not shown on a terminal unless asked: give --out FILE, use a pipe, or add --reveal.",
            Exit.USAGE,
        )
    check_target(target)


def check_target(target: str | None) -> None:
    """Refuse before the call when the file to write to exists already."""
    if target is not None and os.path.lexists(target):
        raise Refusal("FILE_EXISTS", f"{target} exists; nothing is overwritten: name another file.", Exit.CONFLICT)


def _cell(value: Any) -> str:
    """A value for people: times to the second, and a PEM by its size; the other formats have them whole."""
    if value is None or value in ([], ""):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ("; " if _is_nested(value) else ", ").join(map(_cell, value))
    if isinstance(value, Mapping):
        return _pairs(value, _cell)
    text = str(value)
    if text.startswith("-----BEGIN "):
        return f"PEM of {len(text)} characters"
    return _FRACTION.sub(r"\1Z", text) if _FRACTION.fullmatch(text) else text


def _rows(name: str, value: Any) -> list[tuple[str, str]]:
    """One row of a table, or one for each of several things that have fields of their own."""
    if not _is_nested(value):
        return [(name, _cell(value))]
    return [(f"{name} {number}", _cell(item)) for number, item in enumerate(value, 1)]


def _is_nested(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, Mapping) for item in value)


def _pairs(item: Mapping[str, Any], text: Callable[[Any], str]) -> str:
    """``name=value`` of what is set in it, on one line; a value with anything else than one word is in quotes."""
    told = {name: text(value) for name, value in flat(item).items() if value not in (None, "", [])}
    return " ".join(f"{name}={one if _WORD.fullmatch(one) else json.dumps(one)}" for name, one in told.items())


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], colours: Mapping[str, str] = NO_COLOURS) -> None:
    from rich.console import Console  # noqa: PLC0415  slow to load, and only for people
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name.replace("_", " ").replace(".", " ").upper(), overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell), style=colours.get(cell, "")) for cell in row))
    # A pipe has no width: what is read by grep must not be folded.
    console = Console(width=None if sys.stdout.isatty() else 100_000, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(table)
    # Cells are padded to their column; a line's end needs none of it.
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def _env(kind: str, entry: Entry) -> None:
    lines: dict[str, str] = {}
    for name, value in flat(entry).items():
        variable = "".join(one if one.isalnum() and one.isascii() else "_" for one in f"{kind}_{name}".upper())
        if variable in lines:
            raise Refusal("NAME_TWICE", f"Two values would be called {variable}: use --format json.")
        lines[variable] = _assignment(variable, _text(value))
    sys.stdout.write("".join(f"{line}\n" for line in lines.values()))


def _csv(entries: Sequence[Entry], columns: Sequence[str] = ()) -> None:
    """All fields of all entries, the ones that a table shows first (RFC 4180); the others have no less in them."""
    rows = [flat(entry) for entry in entries]
    names = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    shown = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(shown)
    writer.writerows([_inert(_csv_text(row.get(name, ""))) for name in shown] for row in rows)


def _csv_text(value: Any) -> str:
    """As for shell variables, but what has fields of its own is no JSON: a spreadsheet is read by people."""
    return "; ".join(_pairs(item, _csv_text) for item in value) if _is_nested(value) else _text(value)


def _inert(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in _FORMULA else text


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value).lower()
    if isinstance(value, list):
        return json.dumps(value) if _is_nested(value) else ",".join(str(item) for item in value)
    return str(value)


def _assignment(variable: str, text: str) -> str:
    """A line that any POSIX shell reads, with nothing in it that a terminal would obey (CL-13)."""
    if "\0" in text:
        raise Refusal("VALUE_NOT_TEXT", f"{variable} would hold a zero byte, which no variable can: use --format json.")
    if text.isprintable():
        return f"{variable}={shlex.quote(text)}" if text else f"{variable}="
    # $'…' would be shorter, and other shells than bash take it for something else: a value could end its quotes. The
    # dot keeps line ends at the end, which the shell would take away.
    safe = "".join(chr(one) if chr(one) in _PLAIN else f"\\0{one:03o}" for one in text.encode())
    return f"{variable}=$(printf %b. '{safe}'); {variable}=${{{variable}%.}}"
