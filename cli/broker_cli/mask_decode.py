"""What encoders of text write, taken back: JSON, XML and HTML, URLs, shells and the languages' own ways to quote.

One pass takes back one encoding, of whichever kind, so a text within a text takes two. Nothing here knows of secrets.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import combinations

LEVELS = 4
"""Passes that are tried: JSON within JSON within a URL within a log line of JSON."""

_BACKSLASHED = rb"""\\(?: u\{[0-9a-fA-F]{1,6}\}
        | u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}  # a pair of surrogates
        | u[0-9a-fA-F]{4} | U[0-9a-fA-F]{8} | x\{[0-9a-fA-F]{1,6}\} | x[0-9a-fA-F]{2} | [0-7]{1,3} | [abeEfnrtv]
        | \r?\n[ \t]*                                               # a line that goes on
        | [^0-9A-Za-z])"""
_QUOTES = rb"""'(?: \\'' | "'{1,64}"' | ') | "" """  # out of single quotes and in again; doubled
_CONTINUED = b"|".join(  # a literal in two lines
    quote + rb"""[ \t]{0,8}\+?[ \t]{0,8}\r?\n[ \t]{0,64}['"`]""" for quote in (b"'", b'"', b"`")
)
_PERCENT = rb"""%(?: u[dD][89abAB][0-9a-fA-F]{2}%u[dD][c-fC-F][0-9a-fA-F]{2} | u[0-9a-fA-F]{4} | [0-9a-fA-F]{2})"""
_ENTITY = rb"""&(?: \#[0-9]{1,7} | \#[xX][0-9a-fA-F]{1,6} | [A-Za-z][A-Za-z0-9]{1,31});"""
_SORTS = (b"|".join((_BACKSLASHED, _QUOTES, _CONTINUED)), _PERCENT, _ENTITY)

Reading = re.Pattern[bytes]


def _together(sorts: Iterable[bytes]) -> Reading:
    return re.compile(b"|".join(sorts), re.VERBOSE)


_ESCAPE = _together(_SORTS)
"""Each way begins with a byte of its own, which lets the search skip all others quickly."""

_PARTS = {
    frozenset(some): _together(_SORTS[number] for number in some)
    for size in (2, 1)
    for some in combinations(range(len(_SORTS)), size)
}
_SOME = (_together([_QUOTES]), *_PARTS.values())
"""Between the single quotes of a shell a backslash is one, so its quotes are a way of their own too."""

READINGS = (_ESCAPE, *_SOME)
"""How a text may be taken back: all sorts of escapes at once, or some of them."""

_INTRODUCERS = (re.compile(rb"[\\%&]"), re.compile(rb"""'["'\\ \t+\r\n]|"["\ \t+\r\n]|`[ \t+\r\n]"""))

CHANGING = (
    re.compile(rb"\\[abeEfnrtvuUx0-7]"),
    re.compile(rb"%[0-9a-fA-Fu][0-9a-fA-F]"),
    re.compile(rb"&(?:#|[A-Za-z][A-Za-z0-9]{1,31};)"),
)
"""Escapes that hide or add letters or digits; one expression for each first byte is the fastest way to find them."""

_OPEN = re.compile(
    rb"""(?:\\+(?:u[0-9a-fA-F]{0,3} | u\{[0-9a-fA-F]{0,6} | u[dD][89abAB][0-9a-fA-F]{2}\\*(?:u[0-9a-fA-F]{0,3})?
    | U[0-9a-fA-F]{0,7} | x\{?[0-9a-fA-F]{0,6} | [0-7]{1,2})?
    | %(?:u[dD][89abAB][0-9a-fA-F]{2}%?(?:u[0-9a-fA-F]{0,3})? | u[0-9a-fA-F]{0,3} | [0-9a-fA-F]?)
    | &(?:\#[xX]?)?[0-9A-Za-z]{0,31})\Z""",
    re.VERBOSE,
)
_LONGEST_OPEN = 48
_CONTROLS = dict(zip(b"abeEfnrtv", b"\a\b\x1b\x1b\f\n\r\t\v", strict=True))


def readings(text: bytes) -> list[Reading]:
    """Those that give ``text`` other letters or digits: all sorts at once and, when several sorts do, some of them.

    A writer knows one sort, two after each other know two. What is before a value may look, together with its
    beginning, like an escape of another.
    """
    sorts = {number for number, changing in enumerate(CHANGING) if changing.search(text)}
    return [_ESCAPE, *(reading for some, reading in _PARTS.items() if some < sorts)]


def decode(text: bytes, reading: Reading = _ESCAPE) -> bytes:
    """``text`` with one encoding taken back."""
    return reading.sub(_one_of, text)


def stands_for(text: bytes, at: int) -> bytes:
    """What the escape at ``at`` stands for; nothing if there is none."""
    if text[at : at + 1] == b"%" and text[at + 1 : at + 2] not in (b"u", b""):  # the most frequent ones
        return _one(text[at : at + 3])
    found = _ESCAPE.match(text, at)
    return _one(found[0]) if found else b""


def decoded_in_part(text: bytes) -> Iterator[bytes]:
    """``text`` with only some sorts of encodings taken back: it may hold what only looks like one of another sort."""
    return (some.sub(_one_of, text) for some in _SOME)


def may_be_encoded(text: bytes) -> bool:
    """Whether decoding might change ``text``."""
    return any(one.search(text) for one in _INTRODUCERS)


def open_at(text: bytes) -> int:
    """Where the unfinished escape at the end of ``text`` begins; its length when there is none."""
    found = _OPEN.search(text, max(0, len(text) - _LONGEST_OPEN))
    return found.start() if found else len(text)


def _one_of(found: re.Match[bytes]) -> bytes:
    return _one(found[0])


@lru_cache(8192)
def _one(escape: bytes) -> bytes:
    """What a single escape stands for."""
    first, second = escape[0], escape[1]
    if first == ord("%"):
        return _unicode(escape) if second == ord("u") else bytes([int(escape[1:], 16)])
    if first == ord("&"):
        return _entity(escape)
    return _backslashed(escape) if first == ord("\\") else _quoted(escape)


def _backslashed(escape: bytes) -> bytes:
    second = escape[1]
    if second in b"uU":
        return _unicode(escape)
    if second == ord("x"):
        code = int(escape[2:].strip(b"{}"), 16)
        return bytes([code]) if code < 256 else _character(b"%x" % code, 16)
    if second in b"01234567":
        return bytes([int(escape[1:], 8) & 0xFF])
    if second in _CONTROLS:
        return bytes([_CONTROLS[second]])
    return b"" if second in b"\r\n" else escape[1:]


def _unicode(escape: bytes) -> bytes:
    parts = escape.split(escape[:2])[1:]
    if len(parts) == 2:
        high, low = (int(part, 16) for part in parts)
        return _character(b"%x" % (0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00)), 16)
    return _character(escape[2:].strip(b"{}"), 16)


def _character(digits: bytes, base: int) -> bytes:
    code = int(digits, base)
    return chr(code).encode("utf-8", "surrogatepass") if code <= 0x10FFFF else b""


def _entity(escape: bytes) -> bytes:
    if escape[1] != ord("#"):
        from html.entities import html5  # noqa: PLC0415  large, and seldom needed

        return html5.get(escape[1:].decode(), "").encode() or escape
    digits = escape[2:-1]
    return _character(digits[1:], 16) if digits[:1] in (b"x", b"X") else _character(digits, 10)


def _quoted(escape: bytes) -> bytes:
    """Quotes of shells, of literals in several parts, and doubled ones."""
    if escape[1:2] == b"\\":
        return b"'"
    if escape[1:2] == b'"' and escape[:1] == b"'":
        return escape[2:-2]
    return b"" if b"\n" in escape else escape[:1]


class Layer:
    """A text with one encoding taken back, that knows where each of its bytes came from."""

    __slots__ = ("_ins", "_outs", "_reading", "below", "text")

    def __init__(self, text: bytes, below: Layer | None = None, reading: Reading = _ESCAPE) -> None:
        self.text, self.below, self._reading = text, below, reading
        self._outs: list[tuple[int, int]] = [(0, 0)]
        self._ins: list[tuple[int, int]] = [(0, 0)]

    def decoded(self) -> Layer | None:
        """The layer above, or None when nothing is encoded here."""
        pieces: list[bytes] = []
        above, at, length = Layer(b"", self, self._reading), 0, 0
        for found in self._reading.finditer(self.text):
            start, end = found.span()
            one = _one(found[0])
            pieces += [self.text[at:start], one]
            length += start - at
            above._outs.append((length, length + len(one)))
            above._ins.append((start, end))
            length, at = length + len(one), end
        above.text = b"".join(pieces) + self.text[at:]
        return above if above.text != self.text else None

    def origin(self, start: int, end: int) -> tuple[int, int]:
        """The bytes of the lowest layer that ``start:end`` of this one came from."""
        if self.below is None:
            return start, end
        return self.below.origin(self._came(start)[0], self._came(end - 1)[1] if end > start else self._came(end)[0])

    def _came(self, at: int) -> tuple[int, int]:
        number = bisect_right(self._outs, (at, len(self.text) + 1)) - 1
        begin, end = self._outs[number]
        into = self._ins[number]
        if begin <= at < end:
            return into
        return into[1] + at - end, into[1] + at - end + 1


def layers(text: bytes, reading: Reading = _ESCAPE) -> list[Layer]:
    """``text`` and what is left of it when one encoding after another is taken back."""
    found = [Layer(text, None, reading)]
    while len(found) <= LEVELS and (above := found[-1].decoded()):
        found.append(above)
    return found
