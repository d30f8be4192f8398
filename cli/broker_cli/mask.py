"""Every form in which a secret may turn up in output, and the replacing of them in a stream (CL-10).

What is not seen: a value that the program itself changed in another way (encrypted, reversed, cut up by terminal
escapes), and values shorter than four bytes, which would blacken half of every text.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from urllib.parse import quote, quote_plus

SHORTEST = 4
MASK = b"***"
_WRAPPED = (64, 76)
"""Columns at which base64 is broken: by PEM and by base64(1)."""

_SHORT = 7
"""Beginnings up to this length are looked up in a table, longer ones searched for."""

_HTML_IN_JSON = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def forms(value: bytes) -> set[bytes]:
    """All that is looked for to hide ``value``; empty when it is too short to hide."""
    if len(value) < SHORTEST:
        return set()
    core = value.strip(b"\r\n") or value
    found = set(_lines(value))
    for text in {core, *found}:
        found |= {*_url(text), *_json(text)}
    found |= {form for text in {core, value} for form in _base64(text)}
    return {form for form in found if len(form) >= SHORTEST}


def _lines(value: bytes) -> Iterator[bytes]:
    lines = [line.rstrip(b"\r") for line in value.split(b"\n")]
    yield from lines
    if any(0 < len(line) < SHORTEST for line in lines):  # only together are they long enough to be looked for
        stripped = value.strip(b"\r\n")
        yield from (value if len(stripped) < SHORTEST else stripped, b"\r\n".join(lines).strip(b"\r\n"))


def _url(text: bytes) -> Iterator[bytes]:
    for form in (quote(text, safe=""), quote(text), quote_plus(text), quote(text, safe="!'()*~")):
        yield form.encode()
        yield _lower_escapes(form).encode()


def _lower_escapes(form: str) -> str:
    first, *rest = form.split("%")
    return "%".join([first, *(one[:2].lower() + one[2:] for one in rest)])


def _json(text: bytes) -> Iterator[bytes]:
    try:
        decoded = text.decode()
    except UnicodeDecodeError:
        return
    for ascii_only in (True, False):
        form = json.dumps(decoded, ensure_ascii=ascii_only)[1:-1]
        for one in (form, form.replace("/", "\\/"), form.translate(_HTML_IN_JSON)):
            yield one.encode()
            yield json.dumps(one, ensure_ascii=False)[1:-1].encode()  # JSON within JSON, as logs like to have it


def _base64(text: bytes) -> Iterator[bytes]:
    """The characters that ``text`` alone decides, wherever in a longer text it stands, in both alphabets."""
    for before in range(3):
        whole = (before + len(text)) * 8 // 6
        encoded = base64.b64encode(b"\0" * before + text)
        own = encoded[-(-before * 8 // 6) : whole]
        forms_ = [own, *([encoded.rstrip(b"=")] if before == 0 else [])]
        forms_ += [part for width in _WRAPPED for part in _parts(own, width)] if before == 0 else []
        for form in forms_:
            yield form
            yield form.replace(b"+", b"-").replace(b"/", b"_")


def _parts(encoded: bytes, width: int) -> Iterator[bytes]:
    """The full lines of wrapped base64, and what its last one begins with."""
    if len(encoded) > width:
        yield from (encoded[at : at + width] for at in range(0, len(encoded), width))


class Masker:
    """Replaces forms in a stream. Only what may be the beginning of one is held back."""

    def __init__(self, values: Iterable[bytes]) -> None:
        self._forms = sorted({form for value in values for form in forms(value)}, key=len)
        self._starts = {form[:size] for form in self._forms for size in range(1, min(_SHORT + 1, len(form)))}
        self._kept = b""
        self._rested = False
        self._done = 0  # so many bytes of _kept were shown or masked already; they are kept to recognise what follows

    @property
    def holding(self) -> bool:
        """Whether something new is held back."""
        return len(self._kept) > self._done and not self._rested

    def feed(self, piece: bytes) -> bytes:
        """What can be shown now that ``piece`` has come."""
        self._kept += piece
        self._rested = False
        return self._show(len(self._kept) - self._open())

    def relax(self) -> bytes:
        """What may be shown because nothing comes: a few bytes only, too few to tell anything of a value.

        They are remembered, so that a value whose beginning was shown is still recognised and its rest masked.
        """
        self._rested = True
        tail = self._kept
        ends = [tail[at:] for at in range(len(tail))] if len(tail) < SHORTEST else []
        if not ends or any(_tells(end, form) for end in ends for form in self._forms):
            return b""
        shown, self._done = tail[self._done :], len(tail)
        return shown

    def finish(self) -> bytes:
        """The rest, when the stream has ended."""
        return self._show(len(self._kept))

    def _show(self, upto: int) -> bytes:
        """Give out the first ``upto`` bytes of what is kept, masked; a match that reaches further stays marked."""
        shown, at = [], self._done
        for start, end in self._found():
            if start >= upto:
                break
            if end <= at:
                continue
            shown += [self._kept[at:start], MASK]
            at = end
        shown.append(self._kept[at:upto])
        self._kept, self._done = self._kept[upto:], max(0, at - upto)
        return b"".join(shown)

    def _found(self) -> list[tuple[int, int]]:
        """Where forms are, overlapping ones as one."""
        places = sorted(place for form in self._forms for place in _places(self._kept, form))
        merged: list[tuple[int, int]] = []
        for start, end in places:
            if merged and start <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(end, merged[-1][1])
            else:
                merged.append((start, end))
        return merged

    def _open(self) -> int:
        """The length of the longest end of what is kept that may be the beginning of a form."""
        sizes = range(min(_SHORT, len(self._kept)), 0, -1)
        most = next((size for size in sizes if self._kept[-size:] in self._starts), 0)
        for form in self._forms:
            if len(form) > _SHORT + 1:
                most = max(most, _overlap(self._kept[-(len(form) - 1) :], form))
        return most


def _places(text: bytes, form: bytes) -> Iterator[tuple[int, int]]:
    at = text.find(form)
    while at >= 0:
        yield at, at + len(form)
        at = text.find(form, at + 1)


def _overlap(tail: bytes, form: bytes) -> int:
    """How many bytes at the end of ``tail`` are the beginning of ``form``, when more than a few; otherwise 0."""
    start = form[: _SHORT + 1]
    at = tail.find(start)
    while at >= 0:
        if form.startswith(tail[at:]):
            return len(tail) - at
        at = tail.find(start, at + 1)
    return 0


def _tells(end: bytes, form: bytes) -> bool:
    """Whether ``end`` gives away more than a little of ``form``."""
    return form.startswith(end) and len(end) > len(form) // SHORTEST
