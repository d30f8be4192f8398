"""The child of ``broker run``: started with its secrets, its output masked on the way, waited for."""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from broker_cli.mask import Masker
from broker_cli.refusal import Refusal
from broker_cli.run_signals import Signals, has_terminal
from broker_cli.run_terminal import ADOPT, STDERR, STDIN, STDOUT, Keyboard, Pseudo, open_like

CHUNK = 64 * 1024
QUIET = 0.05
"""Seconds without output after which a few held-back bytes may be shown, or an ended child's output is complete."""

LINGER = 1.0
"""Seconds at most in which output is still taken after the child has ended: its own children may go on for ever."""


@dataclass(slots=True)
class Stream:
    """One way for output: from the child's end to ours, masked."""

    source: int
    target: int
    masker: Masker
    broken: bool = False

    def move(self) -> bool:
        """Take what is there and show it; False at the end."""
        try:
            piece = os.read(self.source, CHUNK)
        except BlockingIOError:
            return True
        except OSError:  # a pseudo-terminal that the last one has left
            piece = b""
        self.show(self.masker.feed(piece) if piece else self.masker.finish())
        return bool(piece) and not self.broken

    def show(self, piece: bytes) -> None:
        """Write all of it; a reader that has gone away breaks the stream, as it would for the child itself."""
        view = memoryview(piece)
        while view and not self.broken:
            try:
                view = view[os.write(self.target, view) :]
            except BlockingIOError:  # somebody else made our output non-blocking
                select.select([], [self.target], [])
            except OSError:
                self.broken = True


@dataclass(slots=True)
class Child:
    """A command that runs with its output passing through here."""

    process: subprocess.Popen[bytes]
    streams: list[Stream]
    terminals: list[Pseudo]
    keyboard: Keyboard | None
    own_group: bool
    _typed: bytearray = field(default_factory=bytearray)
    _watch: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)

    def wait(self, signals: Signals) -> int:
        """Move output until the child has ended: its exit code, 128+n when signal n ended it."""
        signals.resized, signals.continued = self._resize, self._continue
        self._watch.register(signals.wake, selectors.EVENT_READ)
        for stream in self.streams:
            self._watch.register(stream.source, selectors.EVENT_READ, stream)
        try:
            self._continue()
            signals.follow(self.process)
            while self.process.poll() is None:
                self._turn(signals.wake, self._patience())
            self._rest(signals.wake)
        finally:
            signals.resized = signals.continued = lambda: None
            self._close()
        code = self.process.returncode
        return 128 - code if code < 0 else code

    def _patience(self) -> float | None:
        return QUIET if any(stream.masker.holding for stream in self.streams) else None

    def _turn(self, wake: int, patience: float | None) -> bool:
        """One round of whatever is ready; False when nothing was."""
        ready = self._watch.select(patience)
        for key, events in ready:
            if key.fd == wake:
                os.read(wake, 4096)
            elif key.fd == STDIN:
                self._take_typed()
            else:
                if events & selectors.EVENT_WRITE:
                    self._give_typed()
                if events & selectors.EVENT_READ and not key.data.move():
                    self._drop(key.data)
        if not ready:
            for stream in self.streams:
                stream.show(stream.masker.relax())
        return bool(ready)

    def _rest(self, wake: int) -> None:
        """What the child wrote before it ended, but not all that others it left behind may still write."""
        until = time.monotonic() + LINGER
        while self.streams and time.monotonic() < until and self._turn(wake, QUIET):
            pass
        for stream in self.streams:
            stream.show(stream.masker.finish())

    def _drop(self, stream: Stream) -> None:
        self._watch.unregister(stream.source)
        self.streams.remove(stream)
        if not any(pseudo.ours == stream.source for pseudo in self.terminals):
            os.close(stream.source)  # now the child learns that nobody reads

    def _resize(self) -> None:
        for pseudo in self.terminals:
            pseudo.resize()

    def _continue(self) -> None:
        """At the start, and whenever we are put in front again: sizes, raw mode, what is typed."""
        self._resize()
        if self.keyboard is not None:
            self.keyboard.start()
            if self.keyboard.raw and STDIN not in self._watch.get_map():
                self._watch.register(STDIN, selectors.EVENT_READ)

    def _take_typed(self) -> None:
        try:
            typed = os.read(STDIN, 4096)
        except OSError:
            typed = b""
        self._typed += typed
        self._watch.unregister(STDIN)  # until this is written: a child that does not read must not fill our memory
        if typed:
            self._give_typed()

    def _give_typed(self) -> None:
        terminal = self.terminals[0].ours
        with contextlib.suppress(OSError):  # full, or left: what remains is tried again or dropped below
            del self._typed[: os.write(terminal, self._typed)]
        if terminal not in self._watch.get_map():
            return
        more = selectors.EVENT_WRITE if self._typed else 0
        self._watch.modify(terminal, selectors.EVENT_READ | more, self._watch.get_key(terminal).data)
        if not self._typed and STDIN not in self._watch.get_map():
            self._watch.register(STDIN, selectors.EVENT_READ)

    def _close(self) -> None:
        if self.keyboard is not None:
            self.keyboard.restore()
        self._watch.close()
        for descriptor in {one.source for one in self.streams} | {one.ours for one in self.terminals}:
            os.close(descriptor)


def start(path: str, command: list[str], environment: Mapping[str, str | bytes], values: Iterable[bytes]) -> Child:
    """Start ``command`` (found at ``path``) so that it sees what it would see without us: a terminal where one is.

    Without a controlling terminal it gets a process group of its own, so that a signal to ours (a CI that cancels the
    job) reaches it once, by us. In front of a terminal it stays in ours, where the terminal's keys reach it too.
    """
    values = list(values)
    front = os.isatty(STDOUT)
    keyboard = Keyboard() if front and os.isatty(STDIN) else None
    terminals = [open_like(one, raw_outside=keyboard is not None) for one in _terminals(front=front)]
    outs, streams = _ways(terminals, values)
    own_group = front or not has_terminal()
    wrapped = [sys.executable, "-I", "-S", "-c", ADOPT, path, *command] if front else command
    try:
        process = subprocess.Popen(  # noqa: S603  running what the caller says is the point
            wrapped,
            executable=None if front else path,
            stdin=terminals[0].childs if keyboard is not None else None,
            stdout=outs[0],
            stderr=outs[1],
            env=environment,
            start_new_session=front,
            process_group=0 if own_group and not front else None,
        )
    except OSError as fault:
        raise Refusal("COMMAND_NOT_STARTED", f"{command[0]} cannot be started: {fault.strerror}.") from None
    finally:
        for descriptor in set(outs):
            os.close(descriptor)
    return Child(process, streams, terminals, keyboard, own_group)


def _terminals(*, front: bool) -> list[int]:
    """The descriptors in whose likeness a terminal is made: one for standard output and error, if both have one."""
    if front:
        return [STDOUT]
    return [STDERR] if os.isatty(STDERR) else []


def _ways(terminals: list[Pseudo], values: list[bytes]) -> tuple[list[int], list[Stream]]:
    """The child's ends of standard output and error, and the streams from our ends."""
    outs: list[int] = []
    streams: list[Stream] = []
    for target in (STDOUT, STDERR):
        if os.isatty(target):
            outs.append(terminals[0].childs)
            source = terminals[0].ours
            if any(stream.source == source for stream in streams):
                continue
        else:
            source, childs = os.pipe()
            outs.append(childs)
        os.set_blocking(source, False)
        streams.append(Stream(source, target, Masker(values)))
    return outs, streams
