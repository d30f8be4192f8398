"""Where COMMAND writes to: pipes and pseudo-terminals in the place of our standard output and error."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Self

from broker_cli import process
from broker_cli.run_terminal import STDERR, STDIN, STDOUT, Keyboard, Pseudo, open_like


@dataclass(slots=True)
class Outlets:
    """The child's ends, and the ways from ours to where its output goes. A context that closes what is still open.

    An end is None when the child has ours itself: it is closed, or nobody reads it.
    """

    front: bool
    keyboard: Keyboard | None
    ends: dict[int, int | None] = field(default_factory=dict)
    ways: list[tuple[int, int]] = field(default_factory=list)
    terminals: list[Pseudo] = field(default_factory=list)
    inherited: tuple[int, ...] = field(default_factory=process.inherited)
    """Descriptors above 2 that are the child's: a jobserver's, sockets that are listened at, ``<(…)`` of a shell."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.given()
        for pseudo in self.terminals:
            os.close(pseudo.ours)

    def given(self) -> None:
        """The child has its ends: close ours of them, so that the last who writes is the last who holds one."""
        for end in {end for end in self.ends.values() if end is not None}:
            os.close(end)
        self.ends = dict.fromkeys(self.ends)

    def release(self) -> None:
        """The child has what we were given: hold none of it open, neither our input nor what is inherited beyond."""
        for descriptor in self.inherited:
            os.close(descriptor)
        if self.keyboard is None:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, STDIN, inheritable=False)
            os.close(null)

    def _add(self, target: int) -> None:
        if not process.given(target) or process.is_null(target):
            self.ends[target] = None
        elif target == STDERR and self._shared():
            self.ends[target] = self.ends[STDOUT]
        else:
            source, self.ends[target] = self._terminal(target) if os.isatty(target) else os.pipe()
            self.ways.append((source, os.dup(target)))

    def _shared(self) -> bool:
        both = os.isatty(STDOUT) and os.isatty(STDERR)
        return both or (self.ends[STDOUT] is not None and process.same_place(STDOUT, STDERR))

    def _terminal(self, target: int) -> tuple[int, int]:
        pseudo = open_like(target, raw_outside=self.keyboard is not None)
        self.terminals.append(pseudo)
        return os.dup(pseudo.ours), pseudo.childs


def outlets() -> Outlets:
    """What a child of ours is to have, so that it sees what it would see without us: a terminal where one is."""
    front = os.isatty(STDOUT)
    made = Outlets(front, Keyboard() if front and os.isatty(STDIN) else None)
    for target in (STDOUT, STDERR):
        made._add(target)  # noqa: SLF001  they are built here alone
    return made
