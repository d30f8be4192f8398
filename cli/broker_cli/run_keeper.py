"""Stands beside ``broker run``: shows the command's output masked, and tidies up after a wrapper that was killed.

Runs as a program of its own in a session of its own (standard library only). It reads lines of JSON, each an object of
one name: ``ways`` (the descriptors of the output, and the witness's), ``values``, ``folder``, ``child``, ``drain``,
``over``; and answers with ``witness``, ``shown`` and ``lost``. Its input ends with the wrapper; without ``over`` before
that, the wrapper was killed. What the command left behind goes on to write, and the keeper to mask it, until the last
of them has ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

_KILL, _TERM = signal.SIGKILL, signal.SIGTERM


class Keeping:
    """What the keeper has been told so far."""

    def __init__(self, ways: list[tuple[int, int]]) -> None:
        self._ways = ways
        self._streams: list[Any] = []
        self._folder: str | None = None
        self._child: tuple[int, int] | None = None  # its number, and a descriptor that cannot mean another
        self._told = threading.Lock()
        self.over = False

    def take(self, name: str, value: Any) -> None:
        """Do what one line says."""
        if name == "values":
            self._start([bytes.fromhex(one) for one in value])
        elif name == "folder":
            self._folder = value
        elif name == "child":
            with suppress(ProcessLookupError):  # it has ended already
                self._child = value, os.pidfd_open(value)
        elif name == "drain":
            threading.Thread(target=self._drain, args=(value,), daemon=True).start()  # a reader may never read
        elif name == "over":
            self.over = True

    def tell(self, name: str, value: object) -> None:
        """Answer the wrapper, if it is still there."""
        with self._told, suppress(BrokenPipeError):
            os.write(1, json.dumps({name: value}).encode() + b"\n")

    def tidy(self) -> None:
        """The wrapper was killed: so is COMMAND; what it has started is asked to end, and its files are removed."""
        if self._child is not None:
            _end(*self._child)
        if self._folder is not None:
            import shutil  # noqa: PLC0415  only now: it would cost the start of every job

            shutil.rmtree(self._folder, ignore_errors=True)  # with whatever the command has put beside our files

    def _drain(self, last: bool) -> None:  # noqa: FBT001
        for stream in self._streams:
            stream.drain(last=last)
        self.tell("shown", None)

    def _start(self, values: list[bytes]) -> None:
        from broker_cli.mask import Masker  # noqa: PLC0415  found since ``main`` has said where
        from broker_cli.run_pump import Stream  # noqa: PLC0415

        lost = lambda why: self.tell("lost", why)  # noqa: E731
        self._streams = [Stream(source, target, Masker(values), lost) for source, target in self._ways]
        for stream in self._streams:
            stream.start()


def _end(pid: int, child: int) -> None:
    from broker_cli.process import descendants  # noqa: PLC0415

    below = []
    for one in descendants(pid):
        with suppress(OSError):  # it has ended meanwhile
            below.append(os.pidfd_open(one))
    for descriptor, number in [(child, _KILL), *((one, _TERM) for one in below)]:
        with suppress(OSError):
            signal.pidfd_send_signal(descriptor, number)


def _witness(orders: int) -> NoReturn:
    """Stay in the group of the wrapper and block every signal: what is pending here was sent to the whole group.

    A byte of ``orders`` is a signal to forget; they end with the wrapper.
    """
    os.closerange(0, orders)
    os.closerange(orders + 1, os.sysconf("SC_OPEN_MAX"))
    try:
        while order := os.read(orders, 1):
            signal.sigtimedwait(order, 0)
    finally:
        os._exit(0)


def main() -> None:
    """Do as told until the wrapper's end and the output's."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # what ends the job must not end its output
    ways = json.loads(sys.stdin.buffer.readline())["ways"]
    witness = os.fork()
    if not witness:
        _witness(ways["witness"])
    os.close(ways["witness"])
    os.setsid()  # what is sent to the wrapper's group does not reach us
    sys.path.append(str(Path(__file__).parents[1]))
    from broker_cli.process import hide_memory  # noqa: PLC0415

    hide_memory()
    keeping = Keeping(ways["streams"])
    keeping.tell("witness", witness)
    try:
        for line in sys.stdin.buffer:
            for name, value in json.loads(line).items():
                keeping.take(name, value)
        if not keeping.over:
            keeping.tidy()
        os.waitpid(witness, 0)
    except BaseException:  # noqa: BLE001  whatever it was
        os._exit(1)  # with the threads: output that nobody looks after is not shown, and the wrapper learns of it


if __name__ == "__main__":
    main()
