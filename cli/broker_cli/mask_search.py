"""Where targets are in a text, and where one may begin at its end."""

from __future__ import annotations

import re
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from itertools import accumulate, compress, islice

from broker_cli.mask_blocks import LONG, SHORT, Blocks
from broker_cli.mask_decode import (
    CHANGING,
    LEVELS,
    READINGS,
    Layer,
    Reading,
    decode,
    layers,
    may_be_encoded,
    open_at,
    readings,
    stands_for,
)
from broker_cli.mask_targets import BASE64, BLANKS, DELETED, KEPT, TEXT, Kind, Target, same, skeleton

Span = tuple[int, int]

_FIND, _LOOK = 0.45, 4.3
"""What it costs to look for one string by itself, and to look at every block: nanoseconds a byte."""

_FEW = 20
"""So many are rather looked for by themselves than in small blocks."""

_STRIDES = (1, 2, 4, 6)
_STEP = 1024
_SLACK = 64
_STRETCH = 10
"""So many times longer than what it stands for may something be that is encoded within punctuation."""

_NOISE = BLANKS + b"\\'\"`$+\0"
_INTRODUCERS = (b"\\", b"%", b"&", b"'", b'"', b"`")
_WITHIN = b"\r\n\\%&'\""
"""What base64 may have within, and what begins escapes."""

_ESCAPED = re.compile(rb"\\[\\%&]")
_OCTAL = re.compile(rb"\\[0-7]")
_PADDING = re.compile(rb"(?:=|%3[dD]|\\u003[dD]){0,2}")


class Skeleton:
    """The skeleton of a text, and where its characters came from."""

    def __init__(self, text: bytes) -> None:
        self._source = text
        parts = [skeleton(text[at : at + _STEP]) for at in range(0, len(text), _STEP)]
        self.text = b"".join(parts)
        self._ends = list(accumulate(map(len, parts)))
        self._known: dict[int, list[int]] = {}

    def place(self, at: int) -> int:
        """The place in the text of the skeleton's character ``at``."""
        number = bisect_left(self._ends, at + 1)
        if number not in self._known:
            begin = number * _STEP
            part = self._source[begin : begin + _STEP]
            self._known[number] = list(compress(range(begin, begin + len(part)), part.translate(KEPT)))
        return self._known[number][at - (self._ends[number - 1] if number else 0)]


class Search:
    """Finds targets, encoded in any way that ``mask_decode`` knows, in time that does not grow with their number."""

    def __init__(self, targets: Iterable[Target]) -> None:
        self._by_skeleton: dict[bytes, list[Target]] = {}
        weak: set[bytes] = set()
        for target in targets:
            if len(target.skeleton) < SHORT:
                weak.add(target.text.strip(BLANKS).rstrip(b"\\") or target.text)
            elif target not in (alike := self._by_skeleton.setdefault(target.skeleton, [])):
                alike.append(target)
        self._weak = sorted(weak - {b""}, key=len, reverse=True)
        self._weak_pattern = re.compile(b"|".join(map(_flexible, self._weak))) if self._weak else None
        self._sorted = sorted(self._by_skeleton)
        self._heads = Blocks({one[:SHORT] for one in self._sorted}, SHORT, 0)
        self._beginnings = {one[:size] for one in self._sorted for size in range(1, SHORT)}
        self._longest = max(map(len, self._sorted), default=0)
        leads = {(target.kind, target.kind.plain(target.lead)) for target in self._all() if target.lead}
        self._leads = {(kind, lead[:size].rstrip()) for kind, lead in leads for size in range(1, len(lead) + 1)}
        self._longest_lead = 2 * max((len(lead) for _, lead in leads), default=0)
        self._reach = max(map(len, self.texts()), default=0) + _SLACK // 2
        self._strange = frozenset(range(128)) - {*b"".join(self.texts()), *_WITHIN}
        self._index()

    def texts(self) -> Iterator[bytes]:
        """All targets as they are."""
        yield from self._weak
        yield from (target.text for target in self._all())

    def _all(self) -> Iterator[Target]:
        return (target for alike in self._by_skeleton.values() for target in alike)

    def _index(self) -> None:
        """Long skeletons are found by blocks, few short ones by themselves, whichever way is fastest."""
        lengths = sorted(map(len, self._sorted))

        def cost(stride: int) -> float:
            shorter = bisect_left(lengths, _needed(LONG, stride))
            return _FIND * shorter + (_LOOK / stride if shorter < len(lengths) else 0)

        stride = min(_STRIDES, key=cost)
        short = [one for one in self._sorted if len(one) < _needed(LONG, stride)]
        self._blocks = [Blocks((one for one in self._sorted if len(one) >= _needed(LONG, stride)), LONG, stride)]
        self._singly = short if len(short) <= _FEW else []
        if not self._singly:
            middling, least = ([one for one in short if (len(one) < _needed(SHORT, 1)) is few] for few in (False, True))
            self._blocks += [Blocks(middling, SHORT, 1), Blocks(least, SHORT, 0)]

    def spans(self, text: bytes) -> list[Span]:
        """Where targets are, overlapping ones as one."""
        found = list(self._in_layer(Layer(text))) if self._touches(skeleton(text)) else []
        for reading, islands in _by_reading(text, self._islands(text)).items():
            if self._touches_decoded(b"\n".join(text[start:end] for start, end in islands), reading):
                for begin, end in islands:
                    above = layers(text[begin:end], reading)[1:]
                    found += [(begin + a, begin + b) for layer in above for a, b in self._in_layer(layer)]
        if self._weak_pattern:
            every = (layer for reading in _telling(text, self._weak_pattern) for layer in layers(text, reading))
            found += [layer.origin(*one.span()) for layer in every for one in self._weak_pattern.finditer(layer.text)]
        return _merged(found)

    def _touches(self, bones: bytes) -> bool:
        return any(blocks.any_in(bones) for blocks in self._blocks) or any(one in bones for one in self._singly)

    def _touches_decoded(self, text: bytes, reading: Reading) -> bool:
        for _ in range(LEVELS):
            text = decode(text, reading)
            if self._touches(skeleton(text)):
                return True
            if not any(pattern.search(text) for pattern in CHANGING):
                return False
        return False

    def _islands(self, text: bytes) -> list[Span]:
        """The surroundings of escapes that stand for what targets have, or for a part of another escape."""
        escaped = _ESCAPED.search(text) is not None
        some = (pattern for pattern in CHANGING if escaped or self._may_matter(text, pattern))
        found = (one.start() for pattern in some for one in pattern.finditer(text))
        marks = sorted(at for at in found if text[at - 1 : at] == b"\\" or self._matters(stands_for(text, at)))
        if len(marks) * self._reach > len(text):
            return [(0, len(text))]
        return _merged((max(0, at - self._reach), min(len(text), at + self._reach)) for at in marks)

    def _may_matter(self, text: bytes, escapes: re.Pattern[bytes]) -> bool:
        """Whether any of them does, told by the few that are different from each other."""
        for escape in set(escapes.findall(text)):
            character = b"" if _OCTAL.fullmatch(escape) else stands_for(escape, 0)  # none, too, for half an escape
            if not character or self._matters(character):
                return True
        return False

    def _matters(self, character: bytes) -> bool:
        return not self._strange.issuperset(character[:1])

    def _starts(self, bones: bytes) -> Iterator[tuple[int, bytes]]:
        for blocks in self._blocks:
            yield from blocks.starts(bones)
        for one in self._singly:
            at = bones.find(one)
            while at >= 0:
                yield at, one
                at = bones.find(one, at + 1)

    def _in_layer(self, layer: Layer) -> Iterator[Span]:
        """Where targets are in ``layer``, as places of the lowest one.

        Of those that overlap the one that reaches furthest is tried first, and the others need not be tried then.
        """
        bones = Skeleton(layer.text)
        waiting: list[tuple[int, int, bytes]] = []
        covered = -1
        for start, one in [*sorted(self._starts(bones.text)), (len(layer.text) + 1, b"")]:
            while start > covered and waiting:
                end, begin, other = waiting.pop()
                if end > covered and (span := self._compared(layer, bones, begin, other)):
                    yield span
                    covered, waiting = end, []
            if start > covered and one and (span := self._compared(layer, bones, start, one)):
                yield span
                covered = start + len(one)
            elif start <= covered:
                insort(waiting, (start + len(one), start, one))

    def _compared(self, layer: Layer, bones: Skeleton, start: int, one: bytes) -> Span | None:
        begin, end = bones.place(start), bones.place(start + len(one) - 1) + 1
        found = (_compared(layer.text, begin, end, target) for target in self._by_skeleton[one])
        spans = [layer.origin(*span) for span in found if span]
        return (min(start for start, _ in spans), max(end for _, end in spans)) if spans else None

    def opens(self, text: bytes) -> int:
        """Where what may be the beginning of a target begins at the end of ``text``; its length when nothing is."""
        near = text[-self._reach :]
        encoded = may_be_encoded(near)
        longer = min(_SLACK * sum(map(near.count, _INTRODUCERS)), _STRETCH * self._reach) if encoded else 0
        begin = max(0, len(text) - self._reach - longer)
        whole = Layer(text[begin:])
        found = [self._cut_where_it_opens(whole)]
        for reading in (READINGS if self._weak else readings(whole.text)) if encoded else ():
            layer = Layer(whole.text, None, reading).decoded()
            for _ in range(LEVELS):
                if layer is None:
                    break
                found.append(self._cut_where_it_opens(layer))
                layer = layer.decoded()
        return begin + min(found)

    def _cut_where_it_opens(self, layer: Layer) -> int:
        """The same in ``layer``, as a place of the lowest one; half an escape, text to the layers above, is cut off."""
        unfinished = open_at(layer.text)
        upto = unfinished
        if layer.text[upto - 1 : upto] == b"\\":  # it may be what the backslash stands before, and no escape
            upto = len(layer.text)
        opened = min(unfinished, self._opens_in(layer.text[:upto]))
        layer.text = layer.text[:upto]
        return layer.origin(opened, opened)[0]

    def _opens_in(self, text: bytes) -> int:
        places = list(compress(range(len(text)), text.translate(KEPT)))
        bones = skeleton(text)
        found = [len(text)]
        for first in self._alike(bones):
            if (at := self._opened(text, places, bones, first)) >= 0:
                found.append(at)
                break
        for head in {text.rstrip(BLANKS), text.rstrip(BLANKS + b"+")}:
            sizes = range(1, min(self._longest_lead, len(head) - len(head.rstrip(DELETED))) + 1)
            found += [len(head) - size for size in sizes if self._may_lead(head[-size:])]
        for one in self._weak:
            whole, room = TEXT.plain(one), range(max(0, len(text) - 2 * len(one) - _SLACK), len(text))
            found += [at for at in room if text[at] == one[0] and whole.startswith(TEXT.plain(text[at:]))]
        return min(found)

    def _alike(self, bones: bytes) -> Iterator[int]:
        """Where in ``bones`` one begins as targets do."""
        begin = max(0, len(bones) - self._longest)
        if self._heads.any_in(bones[begin:]):
            yield from sorted({begin + start for start, _ in self._heads.starts(bones[begin:])})
        for first in range(max(begin, len(bones) - SHORT + 1), len(bones)):
            if bones[first:] in self._beginnings:
                yield first

    def _may_lead(self, end: bytes) -> bool:
        return any((kind, kind.plain(end)) in self._leads for kind in (TEXT, BASE64))

    def _opened(self, text: bytes, places: list[int], bones: bytes, first: int) -> int:
        """Where a target begins whose skeleton goes on after ``bones[first:]``; -1 if there is none."""
        bones = bones[first:]
        number = bisect_left(self._sorted, bones)
        found = []
        begin = places[first]
        around = text[:begin].rstrip(BLANKS)
        alone = not around or KEPT[around[-1]]  # no lead can be there
        for one in islice(self._sorted, number, number + _SLACK):
            if not one.startswith(bones):
                break
            for target in self._by_skeleton[one]:
                before = _edge_or_less(target.kind, text[:begin], target.lead, at_end=True)
                if before >= 0 and _goes_on(target, text[begin:], places[-1] + 1 - begin, len(bones)):
                    found.append(begin - before)
                    if alone and not before:
                        return begin
        return min(found, default=-1)


def _by_reading(text: bytes, islands: list[Span]) -> dict[Reading, list[Span]]:
    """The parts of ``text`` that are to be taken back in each way."""
    found: dict[Reading, list[Span]] = {}
    for begin, end in islands:
        for reading in readings(text[begin:end]):
            found.setdefault(reading, []).append((begin, end))
    return found


def _telling(text: bytes, pattern: re.Pattern[bytes]) -> Iterator[Reading]:
    """The ways to take ``text`` back that bring ``pattern`` to light."""
    known: set[bytes] = set()
    for reading in READINGS:
        plain = text
        for _ in range(LEVELS + 1):
            if plain not in known and pattern.search(plain):
                yield reading
                break
            known.add(plain)
            below, plain = plain, decode(plain, reading)
            if plain == below:
                break


def _needed(size: int, stride: int) -> int:
    """How long a skeleton must be to be found by blocks."""
    return (stride + 1) * size - 1


def _compared(text: bytes, begin: int, end: int, target: Target) -> Span | None:
    """The span of ``target`` in ``text`` if it is there, with its skeleton between ``begin`` and ``end``."""
    core, kind = target.core, target.kind
    if end - begin > _STRETCH * (len(core) + _SLACK) or not same(kind, text[begin:end], core):
        return None
    room = _STRETCH * (max(len(target.lead), len(target.trail)) + 1)
    before = _edge_or_less(kind, text[max(0, begin - room) : begin], target.lead, at_end=True)
    after = _edge_or_less(kind, text[end : end + room], target.trail, at_end=False)
    if before < 0 or after < 0:
        return None
    end += after
    if kind is BASE64 and (padding := _PADDING.match(text, end)):
        end = padding.end()
    return begin - before, end


def _edge(kind: Kind, text: bytes, edge: bytes, *, at_end: bool) -> int:
    """How much of ``text`` is the punctuation ``edge``, which is at its end or its beginning; -1 if it is not there."""
    if not edge or (text.endswith(edge) if at_end else text.startswith(edge)):
        return len(edge)
    if not kind.plain(edge):
        return 0
    for size in range(1, min(len(text), _STRETCH * (len(edge) + 1)) + 1):
        if same(kind, text[-size:] if at_end else text[:size], edge):
            return size
    return -1


def _edge_or_less(kind: Kind, text: bytes, edge: bytes, *, at_end: bool) -> int:
    """The same, or without backslashes: a decoder may have taken one for part of what is around."""
    size = _edge(kind, text, edge, at_end=at_end)
    inner = edge.strip(b"\\")
    return size if size >= 0 or inner == edge else _edge(kind, text, inner, at_end=at_end)


def _goes_on(target: Target, text: bytes, end: int, count: int) -> bool:
    """Whether ``text``, with ``count`` characters of the skeleton up to ``end``, may go on as ``target``."""
    at = target.places[count - 1] + 1
    if not same(target.kind, text[:end], target.text[target.places[0] : at]):
        return False
    gap = text[end:]
    whole = count == len(target.places)
    if whole and (len(gap) >= len(target.trail) and _edge(target.kind, gap, target.trail, at_end=False) >= 0):
        return False
    rest = target.trail if whole else target.text[at : target.places[count]]
    if target.kind is TEXT and not rest:
        return not gap
    rest, gap = (target.kind.plain(part).translate(None, _NOISE) for part in (rest, gap))
    return rest.startswith(gap)


def _flexible(text: bytes) -> bytes:
    """An expression for ``text`` with its blanks folded or not."""
    return rb"[\s+]+".join(re.escape(part) for part in text.split())


def _merged(spans: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged
