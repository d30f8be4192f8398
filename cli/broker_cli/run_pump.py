"""One way for COMMAND's output: read, masked, written on. Standard library only: it runs in the keeper."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import termios
import threading
from collections.abc import Callable
from pathlib import Path

from broker_cli.mask import Masker

CHUNK = 64 * 1024
QUIET = 0.05
"""Seconds without output after which a few held-back bytes may be shown."""

_GONE = {errno.EPIPE, errno.EIO, errno.ECONNRESET}
"""The reader has gone away, or the terminal: nobody is there to be told."""


class Stream(threading.Thread):
    """A thread of its own, so that a reader who takes his time with one stream does not hold up the other.

    It ends when nobody can write to ``source`` any more, or nobody can read what is written to ``target``; then both
    are closed, so that who still writes learns it. ``lost`` is told when output could not be written.
    """

    def __init__(self, source: int, target: int, masker: Masker, lost: Callable[[str], None]) -> None:
        super().__init__(name=f"output {target}")
        os.set_blocking(source, False)
        self._source, self._target, self._masker, self._lost = source, target, masker, lost
        self._bell, self._ring = os.pipe()
        self._shown = threading.Event()
        self._last = False
        self._watch = select.poll()
        for descriptor in (source, self._bell):
            self._watch.register(descriptor, select.POLLIN)
        if str(Path(f"/proc/self/fd/{target}").readlink()).startswith(("pipe:", "socket:")):
            self._watch.register(target, 0)  # an end of it that is closed is told all the same

    def run(self) -> None:
        """Move everything until the end."""
        try:
            while self._turn():
                pass
            self._show(self._masker.finish())
        except OSError as fault:
            if fault.errno not in _GONE:
                self._lost(os.strerror(fault.errno or 0))
        except BaseException as fault:
            self._lost(type(fault).__name__)
            raise
        finally:
            for descriptor in (self._source, self._target):
                os.close(descriptor)
            self._shown.set()

    def drain(self, *, last: bool) -> None:
        """Show what has been written until now; ``last``: nobody will show the rest of it."""
        self._last = last
        os.write(self._ring, b".")
        self._shown.wait()

    def _turn(self) -> bool:
        """One round of whatever is ready; False at the end."""
        ready = dict(self._watch.poll(QUIET * 1000 if self._masker.holding else None))
        if not ready:
            self._show(self._masker.relax())
        if self._target in ready:
            return False
        if self._bell in ready:
            return self._catch_up()
        return self._source not in ready or self._move() > 0

    def _move(self) -> int:
        """Take what is there and show it: how much it was, 0 at the end."""
        try:
            piece = os.read(self._source, CHUNK)
        except BlockingIOError:
            return 1
        except OSError:  # a pseudo-terminal that the last one has left
            piece = b""
        if piece:
            self._show(self._masker.feed(piece))
        return len(piece)

    def _catch_up(self) -> bool:
        os.read(self._bell, 1)
        left = struct.unpack("i", fcntl.ioctl(self._source, termios.FIONREAD, b"\0" * 4))[0]
        while left > 0:
            moved = self._move()
            left -= moved
            if not moved:
                return False
        self._show(self._masker.finish() if self._last else self._masker.relax())
        self._shown.set()
        return True

    def _show(self, piece: bytes) -> None:
        view = memoryview(piece)
        while view:
            try:
                view = view[os.write(self._target, view) :]
            except BlockingIOError:  # somebody else made our output non-blocking
                select.select([], [self._target], [])
