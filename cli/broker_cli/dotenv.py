"""Dotenv files, read and written: what is written here reads the same everywhere, here too.

There is no one dotenv. A value is written only if a shell (``. ./file``), python-dotenv, npm's dotenv,
``node --env-file``, docker compose, systemd's ``EnvironmentFile=`` and ``read`` all make the same of it; what any of
them would expand, unescape or run is refused instead (``fetch_formats`` says which format carries it).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from broker_cli import files
from broker_cli.refusal import Exit, Refusal

SCHEME = "broker://"
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
MAX_FILE = 1024 * 1024

_BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"
_WIDE = (b"\xff\xfe", b"\xfe\xff")
_ENDS = re.compile(r"\r\n|\r")  # as each of the readers takes them
_HEAD = re.compile(r"(?:export[ \t]+)?(?P<name>[^\s=]+)[ \t]*=[ \t]*")
_QUOTED = {"'": re.compile(r"'([^']*)'"), '"': re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)}
_REMARK = re.compile(r"(?:^|[ \t])#.*")
_AFTER = re.compile(r"[ \t]*(?:#[^\n]*)?(?:\n|\Z)")
_ESCAPED = re.compile(r'\\([nr"\\$`])')
_MEANT = {"n": "\n", "r": "\r"}

# Within single quotes python-dotenv takes one of two backslashes and expands ${…}, and for npm's dotenv and compose too
# a backslash hides the quote that ends the value. A carriage return is a line's end to most.
_SINGLE = re.compile(r"(?:[^'\r\\]|\\(?!\\|\Z))*")
# Within double quotes shells and others expand these three and end at the fourth.
_DOUBLE = re.compile(r'[^\r\\$`"]*')
_EXPANDED = re.compile(r"\$\{[^}]*\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One assignment of a file; ``place`` names the file and the line."""

    name: str
    value: str = field(repr=False)
    place: str


def read(path: Path) -> dict[str, Line]:
    r"""The assignments of an env file: ``NAME=value``, with ``export`` before it and quotes around the value allowed.

    ``#`` after a blank begins a remark. In single quotes everything stands for itself. In double quotes ``\n`` and
    ``\r`` are line ends, and a backslash takes the meaning from a quote, a backslash, ``$`` and a backtick; before
    anything else it is a backslash. Quoted values may have several lines. Nothing is expanded. UTF-8, with or without a
    byte order mark; lines end as on any system.
    """
    found: dict[str, Line] = {}
    for line in _lines(_text(path), path):
        if line.name in found:
            raise _refused("NAME_TWICE", f"{line.place}: {line.name} is in {found[line.name].place} already; keep one.")
        found[line.name] = line
    return found


def quoted(text: str) -> str | None:
    """The value in the quotes in which every reader reads it back; None when there are none such."""
    if text.startswith(SCHEME) or _EXPANDED.search(text):  # ``read`` would take it for a reference
        return None
    if _SINGLE.fullmatch(text):
        return f"'{text}'"
    return f'"{text}"' if _DOUBLE.fullmatch(text) else None


def _text(path: Path) -> str:
    content = files.read(path, MAX_FILE, "env file")
    if len(content) > MAX_FILE:
        raise _refused("INPUT_TOO_LONG", f"The env file {path} is longer than {MAX_FILE} bytes.")
    if content.startswith(_WIDE):
        raise _refused("ENV_FILE_INVALID", f"The env file {path} is in UTF-16, as PowerShell writes; save it as UTF-8.")
    try:
        text = content.decode()
    except UnicodeDecodeError as fault:
        number = content[: fault.start].count(b"\n") + 1
        raise _refused("ENV_FILE_INVALID", f"{path}, line {number}: this is not UTF-8; save it as UTF-8.") from None
    return _ENDS.sub("\n", text.removeprefix(_BOM))


def _lines(text: str, path: Path) -> Iterator[Line]:
    at = 0
    while at < len(text):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        bare = text[at:end].strip()
        if not bare or bare.startswith("#"):
            at = end + 1
            continue
        place = f"{path}, line {text.count(chr(10), 0, at) + 1}"
        at += len(text[at:end]) - len(text[at:end].lstrip())
        head = _HEAD.match(text, at, end)
        if head is None or not NAME.fullmatch(head["name"]):
            raise _refused("ENV_FILE_INVALID", f"{place}: write NAME=value, NAME of letters, digits and underscores.")
        value, at = _value(text, head.end(), end, f"{place}: {head['name']}")
        if "\0" in value:
            raise _refused("ENV_FILE_INVALID", f"{place}: {head['name']} holds a zero byte, which no variable can.")
        yield Line(name=head["name"], value=value, place=place)


def _value(text: str, at: int, end: int, what: str) -> tuple[str, int]:
    """The value that begins at ``at`` on the line that ends at ``end``, and where the next line begins."""
    quote = text[at : at + 1] if at < end else ""
    if quote not in _QUOTED:
        return _REMARK.sub("", text[at:end]).strip(), end + 1
    closed = _QUOTED[quote].match(text, at)
    if closed is None:
        raise _refused("ENV_FILE_INVALID", f"{what} begins with a quote that does not end.")
    after = _AFTER.match(text, closed.end())
    if after is None:
        raise _refused(
            "ENV_FILE_INVALID",
            f"{what} has something behind the quote that ends it; only a remark (#) can stand there.",
        )
    value = closed[1]
    if quote == '"':
        value = _ESCAPED.sub(lambda found: _MEANT.get(found[1], found[1]), value)
    return value, after.end()


def _refused(reason: str, sentence: str) -> Refusal:
    return Refusal(reason, sentence, Exit.USAGE)
