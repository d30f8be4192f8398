"""The replacing of secrets in a stream of output, however they are encoded there (CL-10).

Output is decoded and compared, so no list of encodings has to be complete. What is and is not seen is told in
docs/ci/behaviour.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from broker_cli.mask_search import Search, Span
from broker_cli.mask_spoken import spoken
from broker_cli.mask_targets import SHORTEST, targets
from broker_cli.mask_values import secret_texts

__all__ = ["MASK", "SHORTEST", "Masker", "spoken"]

MASK = b"***"
_BREAKS = re.compile(rb"(?:\\+[rnt]|%0[aAdD]|&#1[03];)+")
"""Line breaks that are encoded, between two lines of a value."""

_LINES = re.compile(rb"[^\r\n]*[^\s][^\r\n]*")


@lru_cache(maxsize=2)
def _search(values: tuple[bytes, ...]) -> Search:
    return Search(target for value in values for target in targets(secret_texts(value), value))


class Masker:
    """Replaces values in a stream. Only what may be the beginning of one is held back."""

    def __init__(self, values: Iterable[bytes]) -> None:
        self._search = _search(tuple(value for value in values if len(value) >= SHORTEST))
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
        return self._show(self._search.opens(self._kept))

    def relax(self) -> bytes:
        """What may be shown because nothing comes: a few bytes only, too few to tell anything of a value.

        They are remembered, so that a value whose beginning was shown is still recognised and its rest masked.
        """
        self._rested = True
        tail = self._kept
        ends = [tail[at:] for at in range(len(tail))] if len(tail) < SHORTEST else []
        if not ends or any(_tells(end, text) for text in self._search.texts() for end in ends):
            return b""
        shown, self._done = tail[self._done :], len(tail)
        return shown

    def finish(self) -> bytes:
        """The rest, when the stream has ended."""
        return self._show(len(self._kept))

    def _show(self, upto: int) -> bytes:
        """Give out the first ``upto`` bytes of what is kept, masked; a match that reaches further stays marked."""
        shown, at = [], self._done
        for start, end in _joined(self._kept, self._search.spans(self._kept)):
            if start >= upto:
                break
            if end <= at:
                continue
            shown += [self._kept[at:start], _LINES.sub(MASK, self._kept[max(at, start) : end])]
            at = end
        shown.append(self._kept[at:upto])
        self._kept, self._done = self._kept[upto:], max(0, at - upto)
        return b"".join(shown)


def _joined(text: bytes, spans: list[Span]) -> list[Span]:
    """``spans`` as one where only an encoded line break is between them."""
    joined: list[Span] = []
    for start, end in spans:
        if joined and _BREAKS.fullmatch(text, joined[-1][1], start):
            joined[-1] = joined[-1][0], end
        else:
            joined.append((start, end))
    return joined


def _tells(end: bytes, text: bytes) -> bool:
    """Whether ``end`` gives away more than a little of ``text``."""
    return text.startswith(end) and len(end) > len(text) // SHORTEST
