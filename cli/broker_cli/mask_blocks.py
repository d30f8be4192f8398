"""Where some of many byte strings are in a text, by comparing the text block by block."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator

LONG = 8
SHORT = 4
"""Sizes of blocks that memory can be read as."""

_DIGIT = re.compile(rb"[0-9]")
_CODES = {LONG: "Q", SHORT: "I"}


class Blocks:
    """Strings that are found by a block of them: the text is cut in blocks of ``size``, which are looked up in a table.

    Only every ``stride``-th block is looked at. A string of ``(stride + 1) * size - 1`` bytes holds one of them however
    the text is cut, so each way has an entry of its own. For ``stride`` 0 strings need no more than ``size`` bytes: the
    text is cut in every way instead.
    """

    def __init__(self, strings: Iterable[bytes], size: int, stride: int) -> None:
        self._size, self._stride, self._cuts = size, max(1, stride), 1 if stride else size
        self._table: dict[int, list[tuple[int, bytes]]] = {}
        entries = size * stride or 1
        read = struct.Struct("=" + _CODES[size]).unpack_from
        for one in strings:
            begin = _rarest(one, size + entries - 1)
            for at in range(begin, begin + entries):
                self._table.setdefault(read(one, at)[0], []).append((at, one))
        self._keys = frozenset(self._table)

    def any_in(self, text: bytes) -> bool:
        """Whether anything may be there."""
        return any(
            not self._keys.isdisjoint(self._blocks(text, cut)[:: self._stride])
            for cut in range(self._cuts if self._keys else 0)
        )

    def starts(self, text: bytes) -> Iterator[tuple[int, bytes]]:
        """All places of all strings."""
        table, step = self._table, self._size * self._stride
        for cut in range(self._cuts if table else 0):
            for number, block in enumerate(self._blocks(text, cut)[:: self._stride]):
                if block in table:
                    for offset, one in table[block]:
                        start = cut + number * step - offset
                        if start >= 0 and text.startswith(one, start):
                            yield start, one

    def _blocks(self, text: bytes, begin: int) -> memoryview[int]:
        whole = memoryview(text)[begin:]
        whole = whole[: len(whole) // self._size * self._size]
        return whole.cast("Q") if self._size == LONG else whole.cast("I")


def _rarest(one: bytes, width: int) -> int:
    """Where a stretch of ``one`` begins, with a digit if there is one: words are found in every text."""
    room = len(one) - width
    digit = _DIGIT.search(one, len(one) // 3)
    return min(room, max(0, digit.start() - width // 2)) if digit else room // 2
