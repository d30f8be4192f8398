"""What is looked for: each secret text, and what base64, hexadecimal and other character sets make of it.

Targets are found by their skeleton, what is left of a text without punctuation, blanks and case, and then compared.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import compress

from broker_cli.mask_decode import LEVELS, decode, decoded_in_part

SHORTEST = 4
PIECE = 64
"""Bytes: longer texts are looked for in pieces of about this length."""

_LONGEST_PIECE = 256
_LARGE = 16 * 1024
"""Bytes of a value whose lines are not looked for in base64 and hexadecimal as well, only all of it."""

DELETED = bytes(code for code in range(128) if not chr(code).isalnum())
_LOWER = bytes(ord(chr(code).lower()) if code < 128 else code for code in range(256))
KEPT = bytes(code not in DELETED for code in range(256))
"""1 for each byte that a skeleton has."""

BLANKS = b" \t\n\r\v\f"
_AS_BLANK = bytes(ord(" ") if code in BLANKS + b"+" else code for code in range(256))
_STANDARD = bytes.maketrans(b"-_", b"+/")
_DOUBLED = re.compile(rb"""(['"\\$%])\1+""")
_SHELL_ESCAPE = re.compile(rb"""`(?=[`"'$#@])|\^(?=[&|<>^()%!"])""")
_SEPARATORS = BLANKS + b":,-"
_BETWEEN_WORDS = re.compile(rb"[\W_]+")
_WORD = re.compile(rb"[A-Z]*|[A-Z]?[a-z]+(?:[A-Z][a-z]+)*")
_LONGEST_WORD = 24


def skeleton(text: bytes) -> bytes:
    """The letters (small ones), digits, and bytes beyond ASCII of ``text``."""
    return text.translate(_LOWER, DELETED)


def is_words(text: bytes) -> bool:
    """Whether ``text`` is nothing but words and punctuation."""
    words = _BETWEEN_WORDS.split(text)
    return all(len(word) <= _LONGEST_WORD and _WORD.fullmatch(word) for word in words)


class Kind:
    """How what is printed may differ from a target beyond being encoded."""

    def __init__(self, noise: bytes, table: bytes) -> None:
        self.noise, self._table = noise, table

    def plain(self, text: bytes) -> bytes:
        """``text`` without these differences."""
        return text.translate(self._table, self.noise)


class _Text(Kind):
    """Blanks are folded, or are the + of forms; characters of two bytes have zeros; signs may be doubled or not.

    Quotes are doubled by SQL and CSV, $ by make and compose, % by printf and ini files; PowerShell and cmd write a
    backtick or a caret before theirs.
    """

    def plain(self, text: bytes) -> bytes:
        single = _DOUBLED.sub(rb"\1", _SHELL_ESCAPE.sub(b"", text))
        return b" ".join(single.translate(self._table, self.noise).split())


TEXT = _Text(b"\0", _AS_BLANK)
BASE64 = Kind(BLANKS, _STANDARD)
HEX = Kind(_SEPARATORS, _LOWER)


@dataclass(frozen=True)
class Target:
    """A text that is looked for by its skeleton."""

    kind: Kind
    text: bytes
    skeleton: bytes

    @cached_property
    def places(self) -> list[int]:
        """Where the characters of the skeleton are in the text."""
        return list(compress(range(len(self.text)), self.text.translate(KEPT)))

    @cached_property
    def core(self) -> bytes:
        """From the first to the last of them."""
        return self.text.strip(DELETED)

    @cached_property
    def lead(self) -> bytes:
        """What is before them, without blanks."""
        return self.text[: -len(self.text.lstrip(DELETED))].strip(BLANKS)

    @cached_property
    def trail(self) -> bytes:
        """What is after them, without blanks."""
        return self.text[len(self.text.rstrip(DELETED)) :].strip(BLANKS)


def same(kind: Kind, printed: bytes, text: bytes) -> bool:
    """Whether ``printed`` is ``text``, perhaps encoded."""
    plain, first = kind.plain(text), printed
    for _ in range(LEVELS + 1):
        if printed == text or kind.plain(printed) == plain:
            return True
        below, printed = printed, decode(printed)
        if printed == below:
            break
    return printed != first and any(kind.plain(one) == plain for one in decoded_in_part(first))


def targets(texts: Iterable[bytes], whole: bytes) -> Iterator[Target]:
    """All targets for the secret ``texts`` of the value ``whole``."""
    texts = list(texts)
    for text in texts:
        for form in _in_other_sets(text):
            for piece in pieces(form):
                yield Target(TEXT, piece, skeleton(piece))
    for text in {whole, *(texts if len(whole) <= _LARGE else ())}:
        for core in {text, text.strip(BLANKS)}:
            if len(core) >= SHORTEST:
                yield from (
                    Target(BASE64, one, skeleton(one)) for form in base64_cores(core) for one in _equal_parts(form)
                )
                yield from (Target(HEX, one, one) for one in _equal_parts(core.hex().encode()))


def _in_other_sets(text: bytes) -> set[bytes]:
    """``text`` in UTF-8, as Latin-1, with question marks for what a terminal does not know; decoded as it stands."""
    forms = {text}
    if not text.isascii():
        shown = text.decode("utf-8", "replace")
        forms |= {shown.encode(), b"".join(_narrow(one) for one in shown)}
        forms |= {shown.encode("ascii", "replace"), shown.encode("ascii", "ignore")}
        forms |= {shown.encode(wide).replace(b"\0", b"") for wide in ("utf-16-le", "utf-16-be")}  # zeros are noise
    for _ in range(2):  # a writer of one sort leaves, and this reader takes back, what looks like an escape of another
        forms |= {decode(form) for form in forms} | {part for form in forms for part in decoded_in_part(form)}
    return {form for form in forms if len(form.strip(BLANKS)) >= SHORTEST}


def _narrow(character: str) -> bytes:
    return bytes([ord(character)]) if 0x80 <= ord(character) < 0x100 else character.encode("utf-8", "surrogatepass")


def pieces(text: bytes) -> list[bytes]:
    """``text`` in pieces, each with more than words in it; they begin with lines where there are some."""
    units = [part for line in text.splitlines(keepends=True) for part in _equal_parts(line)]
    found: list[bytes] = []
    for unit in units:
        last = found[-1] if found else b""
        grows = last and (len(last) + len(unit) <= PIECE or _is_weak(last) or _is_weak(unit))
        if grows and len(last) + len(unit) <= _LONGEST_PIECE:
            found[-1] += unit
        else:
            found.append(unit)
    if len(found) > 1 and _is_weak(found[-1]):
        found[-2:] = [found[-2] + found[-1]]
    return found


def _is_weak(piece: bytes) -> bool:
    """Whether other texts could well have ``piece`` too."""
    return len(skeleton(piece)) < PIECE // 4 or (len(piece) < _LONGEST_PIECE // 2 and is_words(piece))


def _equal_parts(text: bytes) -> list[bytes]:
    count = max(1, -(-len(text) // (PIECE + 12)))  # a line of 76 is one
    return [text[len(text) * at // count : len(text) * (at + 1) // count] for at in range(count)]


def base64_cores(text: bytes) -> Iterator[bytes]:
    """The characters that ``text`` alone decides, wherever in a longer text it stands."""
    yield base64.b64encode(text).rstrip(b"=")
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + text)
        yield encoded[-(-before * 8 // 6) : (before + len(text)) * 8 // 6]
