"""Pseudo-terminals for a child whose output passes through us, and the person's own terminal meanwhile in raw mode."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import termios
import tty
from dataclasses import dataclass
from typing import Any

STDIN, STDOUT, STDERR = 0, 1, 2
_OFLAG = 1


@dataclass(slots=True)
class Pseudo:
    """A pseudo-terminal in the likeness of one of ours. The child's end is closed here once the child has it."""

    ours: int
    childs: int
    like: int

    def resize(self) -> None:
        """Give it the size of the real one; the kernel tells the process that is in front of it."""
        with contextlib.suppress(OSError):  # a terminal that has gone away has no size to pass on
            fcntl.ioctl(self.ours, termios.TIOCSWINSZ, fcntl.ioctl(self.like, termios.TIOCGWINSZ, b"\0" * 8))


def open_like(like: int, *, raw_outside: bool) -> Pseudo:
    """A pseudo-terminal with the modes and the size of the terminal ``like``."""
    ours, childs = pty.openpty()
    modes: Any = termios.tcgetattr(like)
    if not raw_outside:  # the real one goes on turning newlines into line ends; twice would be once too often
        modes[_OFLAG] &= ~termios.OPOST
    termios.tcsetattr(childs, termios.TCSANOW, modes)
    pseudo = Pseudo(ours, childs, like)
    pseudo.resize()
    return pseudo


class Keyboard:
    """The person's terminal as input: raw while the child has a terminal of its own, as it was afterwards."""

    def __init__(self) -> None:
        self._modes: Any = termios.tcgetattr(STDIN)
        self.raw = False

    def start(self) -> None:
        """Go raw, unless somebody else is in front of the terminal (then we are told when that changes)."""
        if self._in_front():
            tty.setraw(STDIN, termios.TCSADRAIN)
            self.raw = True

    def restore(self) -> None:
        """Put the modes back."""
        if self.raw and self._in_front():
            with contextlib.suppress(termios.error):  # a terminal that has gone away needs no modes
                termios.tcsetattr(STDIN, termios.TCSADRAIN, self._modes)
        self.raw = False

    @staticmethod
    def _in_front() -> bool:
        try:
            return os.tcgetpgrp(STDIN) == os.getpgrp()
        except OSError:
            return False
