"""Signals of the wrapper: an orderly end while there is no child yet, passed on to the child while it lives.

The child is in our process group, as a command is without us: what is sent to the group (by a CI that cancels the job,
by the keys of a terminal) reaches it by itself. What is sent to us alone has to be passed on. The witness of the keeper
tells one from the other: it is in the group too, and has only the former.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Self

from broker_cli.run_files import Keeper

ENDING = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM,
    signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO, signal.SIGPWR, *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
)  # fmt: skip
"""What ends a process that does not care for it, and is sent on purpose."""

OTHERS = (signal.SIGWINCH, signal.SIGURG, signal.SIGCONT, signal.SIGTSTP)
GRACE = 0.05
"""Seconds that a supervisor which signals all processes one by one may take from us to the witness."""

_LOOK = 0.01


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
        self.stopping: Callable[[], None] = _nothing
        self._child: subprocess.Popen[bytes] | None = None
        self._keeper: Keeper | None = None
        self._apart = False
        self._noted: list[tuple[int, float]] = []
        self._raising = True
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self.wake, self._alarm = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(self._alarm, False)
        self._wakeup = signal.set_wakeup_fd(self._alarm, warn_on_full_buffer=False)
        self._take(ENDING)
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
        self._take(OTHERS)
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, _nothing)

    def follow(self, child: subprocess.Popen[bytes], keeper: Keeper, *, apart: bool) -> None:
        """Pass signals on to ``child``: those that waited, and all that come. ``apart``: it is in another group."""
        for number, _ in self._noted:  # they came before it was there, to whomever they were sent
            keeper.forget(number)
            _send(child.pid, number)
        self._noted.clear()
        self._child, self._keeper, self._apart = child, keeper, apart

    def leave(self) -> None:
        """The child has ended: what comes from here on only shortens our waiting."""
        self._child = None
        self._noted.clear()

    @property
    def impatient(self) -> bool:
        """Whether somebody wants us to end, too."""
        return any(number in ENDING for number, _ in self._noted)

    def pass_on(self) -> float | None:
        """Deal with what has come; the seconds until the next look, or None when there is no more."""
        for noted in list(self._noted):
            number, until = noted
            everybody = self._keeper is not None and self._keeper.saw(number)
            if everybody or time.monotonic() >= until:
                self._noted.remove(noted)
                self._deal(number, everybody=everybody)
        return _LOOK if self._noted else None

    def _deal(self, number: int, *, everybody: bool) -> None:
        assert self._child is not None  # noqa: S101  only what comes to a child is noted
        assert self._keeper is not None  # noqa: S101
        if everybody:
            self._keeper.forget(number)
        if everybody and self._apart:
            _send(-self._child.pid, number)
        elif not everybody:
            _send(self._child.pid, number)
        if number == signal.SIGTSTP:
            self.stop(number)
        elif number == signal.SIGCONT:
            self.continued()
        elif number == signal.SIGWINCH:
            self.resized()

    def stop(self, number: int) -> None:
        """Stop as if nobody had taken the signal, until somebody lets us go on."""
        self.stopping()
        taken = signal.signal(number, signal.SIG_DFL) if number != signal.SIGSTOP else None
        os.kill(os.getpid(), number)
        if taken is not None:
            signal.signal(number, taken)

    def _take(self, numbers: tuple[int, ...]) -> None:
        for number in numbers:
            if signal.getsignal(number) not in {signal.SIG_IGN, None}:  # nohup stays nohup, for the child too
                self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        if not self._raising:
            self._noted.append((number, time.monotonic() + GRACE))
        elif number in ENDING:
            self._raising = False  # the way out is not to be interrupted again
            raise Stopped(number)


def _send(pid: int, number: int) -> None:
    """Send to a process, or to a group when ``pid`` is negative."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _nothing(*_: object) -> None:
    """The wake-up alone is what counts."""
