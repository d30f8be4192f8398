"""Signals of the wrapper: an orderly end while there is no child yet, passed on to the child while it lives."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

FORWARDED = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip
_BY_TERMINAL = {signal.SIGINT, signal.SIGQUIT}


class Stopped(BaseException):
    """A signal ended the wrapper before there was a child; not an Exception, so that nothing takes it for a fault."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """Takes over the signals inside its context. ``wake`` is readable whenever one has come, SIGCHLD too."""

    def __init__(self) -> None:
        self.resized: Callable[[], None] = _nothing
        self.continued: Callable[[], None] = _nothing
        self._child: subprocess.Popen[bytes] | None = None
        self._waiting: list[int] = []
        self._raising = True
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self.wake, self._alarm = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(self._alarm, False)
        self._wakeup = signal.set_wakeup_fd(self._alarm, warn_on_full_buffer=False)
        for number in FORWARDED:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays nohup, for the child too
                self._take(number, self._forward)
        self._take(signal.SIGWINCH, lambda *_: self.resized())
        self._take(signal.SIGCONT, lambda *_: self.continued())
        self._take(signal.SIGCHLD, _nothing)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self.wake)
        os.close(self._alarm)

    def hold(self) -> None:
        """From here on signals wait for the child that is about to be started (or end nothing, if there is none)."""
        self._raising = False

    def follow(self, child: subprocess.Popen[bytes]) -> None:
        """Pass signals on to ``child``: those that waited, and all that come."""
        self._child = child
        for number in self._waiting:
            child.send_signal(number)

    def _take(self, number: int, handler: Callable[..., object]) -> None:
        self._before[number] = signal.signal(number, handler)

    def _forward(self, number: int, _: FrameType | None) -> None:
        if self._child is not None:
            if not (number in _BY_TERMINAL and shares_terminal(self._child.pid)):
                self._child.send_signal(number)
        elif self._raising:
            self._raising = False  # the way out is not to be interrupted again
            raise Stopped(number)
        else:
            self._waiting.append(number)


def has_terminal() -> bool:
    """Whether there is a controlling terminal."""
    return _foreground() is not None


def shares_terminal(pid: int) -> bool:
    """Whether the terminal itself sends its signals to ``pid`` as to us: we are together in front of it."""
    try:
        return _foreground() == os.getpgrp() == os.getpgid(pid)
    except ProcessLookupError:
        return False


def _foreground() -> int | None:
    """The process group in front of the controlling terminal; None when there is no such terminal."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.tcgetpgrp(terminal)
    except OSError:
        return None
    finally:
        os.close(terminal)


def _nothing(*_: object) -> None:
    """The wake-up alone is what counts."""
