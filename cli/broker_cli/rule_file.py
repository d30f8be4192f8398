"""A trust rule in a file, YAML or TOML: what is written is what counts, or the line is refused.

YAML guesses: 0123 is 83 to one reader and 123 to another, on is true, 12:30 is 750. An identity must not be guessed, so
the file is read as texts (by the parser's events, before anything is resolved), and what readers differ over, or what
would stand for something else than it shows, is refused with its line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from broker_cli import files
from broker_cli.refusal import Exit, Refusal
from broker_cli.words import PRESETS

MAX_RULE = 128 * 1024
MAX_DEPTH = 4
FIELDS = frozenset({"name", "preset", "issuer", "audience", "pipeline", "max_session", "single_use", "ca_pem", "match"})

DIGITS = re.compile(r"[0-9]+", re.ASCII)
GUESSED = re.compile(
    r"~|null|Null|NULL|True|TRUE|False|FALSE|=|<<"  # nothing, spellings of a truth value, special values
    r"|[-+.]?[0-9][0-9_.]*(?:[eE][-+]?[0-9_]+)?|[-+][.][0-9][0-9_]*(?:[eE][-+]?[0-9_]+)?"  # signs, fractions, exponents
    r"|[-+]?0[xXoObB][0-9a-fA-F_]+|[-+]?[.](?:inf|Inf|INF|nan|NaN|NAN)|[-+]?(?:inf|nan)"
    r"|[-+]?[0-9][0-9_]*(?::[0-9]+)+(?:[.][0-9_]*)?"  # base 60
    r"|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt ].*)?",
    re.ASCII,
)
"""Plain texts that some reader takes for something else; digits alone are not among them (``DIGITS``)."""

QUOTE = "write it in quotes if it is a text"
BREAKS = re.compile("[\x85\u2028\u2029]")
TOML_TEXT = re.compile(r'"""(?s:.*?)"""|\'\'\'(?s:.*?)\'\'\'|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|#[^\n]*')
TOML_WORD = re.compile(r"[^\s=,\[\]{}]+")


@dataclass(frozen=True, slots=True)
class Text:
    """A text as it stands in the file; ``plain``: without quotes."""

    value: str
    line: int
    plain: bool


@dataclass(frozen=True, slots=True)
class Many:
    """A list (``items``), or a mapping (``fields``, each name with its line)."""

    line: int
    items: tuple[Any, ...] = ()
    fields: dict[str, Any] | None = None


def rule(file: str) -> dict[str, Any]:
    """The fields of the rule in ``file`` but its name, and its ``matchers`` as the wire has them."""
    raw = files.take(file, MAX_RULE, "trust rule")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _bad("the file is not UTF-8") from None
    found = _toml(text) if Path(file).suffix == ".toml" else _yaml(text)
    if found.fields is None:
        _refuse(found.line, "a rule is a mapping of names to values")
    return {name: _field(name, value) for name, value in found.fields.items() if name != "name"}


def _field(name: str, value: Text | Many) -> Any:
    if name not in FIELDS:
        _refuse(value.line, f"{name[:40]} is none of {', '.join(sorted(FIELDS))}")
    if name == "match":
        if isinstance(value, Text) or value.fields is None:
            _refuse(value.line, "match is a mapping of claims")
        return [_matcher(claim, one) for claim, one in value.fields.items()]
    if isinstance(value, Many):
        _refuse(value.line, f"{name} is one value")
    if name == "max_session":
        return _seconds(value)
    if name == "single_use":
        return _truth(value)
    if value.plain and (DIGITS.fullmatch(value.value) or value.value in {"true", "false"}):
        _refuse(value.line, f"{name} is a text; {QUOTE}")
    if name == "preset" and value.value not in PRESETS:
        _refuse(value.line, f"preset is one of {', '.join(PRESETS)}")
    return value.value


def _seconds(value: Text) -> int:
    if not (value.plain and DIGITS.fullmatch(value.value) and len(value.value) <= 9 and value.value[0] != "0"):
        _refuse(value.line, "max_session is a whole number of seconds")
    return int(value.value)


def _truth(value: Text) -> bool:
    if not value.plain or value.value not in {"true", "false"}:
        _refuse(value.line, "single_use is true or false")
    return value.value == "true"


def _matcher(claim: str, value: Text | Many) -> dict[str, Any]:
    """A text is exact, a list is a choice; ``{glob: PATTERN}`` a pattern, ``{contains: TEXT}`` for a claim of many."""
    if isinstance(value, Text):
        return matcher(claim, [value.value])
    if value.fields is not None and len(value.fields) == 1:
        (kind, one), *_ = value.fields.items()
        if kind in {"glob", "contains"} and isinstance(one, Text):
            return {"claim": claim, kind: one.value}
    if value.fields is not None or not value.items or not all(isinstance(one, Text) for one in value.items):
        _refuse(value.line, "a claim is matched by a text, a list of texts, {glob: PATTERN} or {contains: TEXT}")
    return matcher(claim, [one.value for one in value.items])


def matcher(claim: str, values: list[str]) -> dict[str, Any]:
    """The wire's matcher for one value, or one of several."""
    if len(values) == 1:
        return {"claim": claim, "exact": values[0]}
    return {"claim": claim, "one_of": {"values": values}}


def _yaml(text: str) -> Many:
    import yaml  # noqa: PLC0415  slow to load

    if broken := BREAKS.search(text):
        _refuse(_line(text, broken.start()), "it holds a line break that not every reader takes for one")
    try:
        return _Events(yaml.parse(text, Loader=yaml.SafeLoader)).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        _refuse(mark.line + 1 if mark else 1, f"it is no YAML: {error.problem or 'it cannot be read'}")
    except yaml.reader.ReaderError as error:
        _refuse(_line(text, error.position), "it holds a character that YAML does not allow")


class _Events:
    """What a parser of YAML saw, as texts, lists and mappings of texts."""

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events

    def document(self) -> Many:
        self._next()  # of the stream
        if type(start := self._next()).__name__ != "DocumentStartEvent":
            _refuse(1, "the file is empty")
        found = self._value(self._next(), 0)
        if isinstance(found, Text):
            _refuse(found.line, "a rule is a mapping of names to values")
        self._next()
        if type(more := self._next()).__name__ == "DocumentStartEvent":
            _refuse(more.start_mark.line + 1, "a second document begins here; a file holds one rule")
        if start.tags:
            _refuse(start.start_mark.line + 1, "tags are not taken; write plain texts")
        return found

    def _next(self) -> Any:
        return next(self._events)

    def _value(self, event: Any, depth: int) -> Text | Many:
        line, kind = event.start_mark.line + 1, type(event).__name__
        if kind == "AliasEvent" or getattr(event, "anchor", None):
            _refuse(line, "anchors and aliases are not taken; write the value where it counts")
        if event.tag:
            _refuse(line, "tags are not taken; write plain texts")
        if kind == "ScalarEvent":
            return self._text(event, line)
        if depth >= MAX_DEPTH:
            _refuse(line, "it is nested too deeply")
        if kind == "SequenceStartEvent":
            return Many(line, items=tuple(self._items(depth)))
        return Many(line, fields=self._fields(depth))

    def _items(self, depth: int) -> Iterator[Text | Many]:
        while type(event := self._next()).__name__ != "SequenceEndEvent":
            yield self._value(event, depth + 1)

    def _fields(self, depth: int) -> dict[str, Text | Many]:
        found: dict[str, Text | Many] = {}
        while type(event := self._next()).__name__ != "MappingEndEvent":
            name = self._value(event, depth + 1)
            if isinstance(name, Many):
                _refuse(name.line, "a name is a text")
            if name.value in found:
                _refuse(name.line, f"{name.value[:40]} is there twice")
            found[name.value] = self._value(self._next(), depth + 1)
        return found

    @staticmethod
    def _text(event: Any, line: int) -> Text:
        plain = event.style is None
        if plain and event.start_mark.line != event.end_mark.line:
            _refuse(line, f"a text without quotes is on one line; {QUOTE}")
        if plain and not event.value:
            _refuse(line, "there is no value")
        if plain:
            check_plain(event.value, line)
        return Text(event.value, line, plain)


def check_plain(text: str, line: int) -> None:
    """Return if a text without quotes is nothing but itself to every reader."""
    if GUESSED.fullmatch(text) and not DIGITS.fullmatch(text):
        _refuse(
            line, f"{text[:40]} is not the same to every reader: a number, a date, a truth value or nothing; {QUOTE}"
        )


def _toml(text: str) -> Many:
    import tomllib  # noqa: PLC0415  only when it is needed

    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _bad(f"it is no TOML: {error}") from None
    except RecursionError:
        raise _bad("it is nested too deeply") from None
    bare = TOML_TEXT.sub(lambda one: '""' + "\n" * one[0].count("\n"), text)
    for word in TOML_WORD.finditer(bare):
        check_plain(word[0], _line(bare, word.start()))
    made = _of_toml(found, text, "", 0)
    assert isinstance(made, Many)  # noqa: S101 (a document of TOML is a table)
    return made


def _of_toml(value: Any, text: str, name: str, depth: int) -> Text | Many:
    line = next((at for at, each in enumerate(text.splitlines(), 1) if name and name in each), 1)
    if isinstance(value, dict) and depth <= MAX_DEPTH:
        return Many(line, fields={key: _of_toml(one, text, key, depth + 1) for key, one in value.items()})
    if isinstance(value, list) and depth <= MAX_DEPTH:
        return Many(line, items=tuple(_of_toml(one, text, name, depth + 1) for one in value))
    if isinstance(value, bool):
        return Text(str(value).lower(), line, plain=True)
    if isinstance(value, str | int):
        return Text(str(value), line, plain=isinstance(value, int))
    return _refuse(line, f"a value is a text, a whole number, true or false; {QUOTE}")


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _refuse(line: int, what: str) -> NoReturn:
    raise _bad(f"line {line}: {what}")


def _bad(what: str) -> Refusal:
    return Refusal("TRUST_RULE_FILE", f"The trust rule cannot be read: {what}.", Exit.USAGE)
