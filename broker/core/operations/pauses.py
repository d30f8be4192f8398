"""The pauses between two attempts at an operation; in memory, so that another process begins at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta

from broker.core.model import Operation

FIRST = timedelta(seconds=2)


@dataclass(slots=True)
class _Pause:
    until: float = 0.0  # ticks
    seconds: float = 0.0
    revision: int = 0  # of the row when it began; one that was written since is tried at once


class Pauses:
    """``ticks``: seconds, never set back."""

    def __init__(self, ticks: Callable[[], float]) -> None:
        self._ticks = ticks
        self._pauses: dict[tuple[str, int], _Pause] = {}

    def over(self, row: Operation) -> bool:
        """Whether it may be tried again."""
        pause = self._pauses.get((row.subject, row.number))
        return pause is None or pause.until <= self._ticks() or pause.revision != row.revision

    def begin(self, row: Operation, longest: timedelta) -> None:
        """After an attempt that has left the row so; twice as long as the pause before, at most ``longest``."""
        pause = self._pauses.setdefault((row.subject, row.number), _Pause())
        pause.seconds = min(2 * pause.seconds, longest.total_seconds()) if pause.seconds else FIRST.total_seconds()
        pause.until, pause.revision = self._ticks() + pause.seconds, row.revision

    def end(self, subject: str, number: int) -> None:
        """Have it tried at once."""
        self._pauses.pop((subject, number), None)

    def keep_those_of(self, rows: Iterable[Operation]) -> None:
        """Forget all others."""
        waiting = {(row.subject, row.number) for row in rows}
        for name in self._pauses.keys() - waiting:
            self._pauses.pop(name, None)
