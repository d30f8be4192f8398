"""The child of ``broker run``: started with what we have ourselves and its secrets, waited for."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from broker_cli.refusal import Refusal
from broker_cli.run_files import Keeper
from broker_cli.run_outlets import Outlets
from broker_cli.run_signals import Signals
from broker_cli.run_terminal import STDERR, STDIN, STDOUT
from broker_cli.screen import chat

OUR_OWN = ("LISTEN_PID", "WATCHDOG_PID", "SYSTEMD_EXEC_PID")
"""Variables that name the process they are for: the service manager means the command, and started us."""

SHELL = "/bin/sh"

# Runs between the fork and the command where only the process itself can do it: wait until the keeper knows it (so that
# a wrapper which is killed leaves no command that nobody ends), adopt a terminal, know its number.
WITHIN = f"""\
import errno, os, signal, sys
for name in ("SIGPIPE", "SIGXFSZ", "SIGINT"):
    if name != "SIGINT" or signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(getattr(signal, name), signal.SIG_DFL)
front, script, gate, ours, path, *command = sys.argv[1:]
if not os.read(int(gate), 1):
    os._exit(1)
os.close(int(gate))
if front:
    import fcntl, termios
    fcntl.ioctl(1, termios.TIOCSCTTY, 0)
with open("/proc/self/environ", "rb") as given:
    around = dict(one.split(b"=", 1) for one in given.read().split(b"\\0") if b"=" in one)
for name in {[name.encode() for name in OUR_OWN]}:
    if around.get(name) == ours.encode():
        around[name] = str(os.getpid()).encode()
try:
    try:
        os.execve(path, command, around)
    except OSError as fault:
        if not script or fault.errno != errno.ENOEXEC:
            raise
        os.execve("{SHELL}", ["{SHELL}", path, *command[1:]], around)
except OSError as fault:
    lost = fault.errno == errno.ENOENT
    why = "the interpreter that it names is not here" if lost and os.path.exists(path) else fault.strerror
    os.write(2, os.fsencode("broker: " + command[0] + " cannot be started: " + why + ". [COMMAND_NOT_STARTED]\\n"))
    os._exit(127 if lost else 126)
"""


@dataclass(slots=True)
class Child:
    """A command whose output passes through the keeper. It begins when it is waited for: at its ``gate``."""

    process: subprocess.Popen[bytes]
    gate: int
    outlets: Outlets
    keeper: Keeper
    _typed: bytearray = field(default_factory=bytearray)
    _watch: select.poll = field(default_factory=select.poll)

    def wait(self, signals: Signals) -> int:
        """Wait until the child has ended and its output is shown: its exit code, -n when signal n ended it."""
        signals.resized, signals.continued, signals.stopping = self._resize, self._continue, self._pause
        for descriptor in (signals.wake, self.keeper.answers):
            self._watch.register(descriptor, select.POLLIN)
        try:
            self._continue()  # before it can show anything: a terminal that is not raw yet would change its line ends
            self._begin()
            signals.follow(self.process, self.keeper, apart=self.outlets.front)
            while not self._ended():
                self._turn(signals)
            signals.leave()
            self.keeper.tell("drain", os.getpid() == 1)  # the end of process 1 is everybody's
            while self.keeper.alive and not self.keeper.shown and not signals.impatient:
                self._turn(signals)
        finally:
            signals.resized = signals.continued = signals.stopping = lambda: None
            self._pause()
        for why in self.keeper.lost:
            chat(f"broker: output of the command was lost: {why}. [OUTPUT_FAILED]")
        return self.process.returncode or bool(self.keeper.lost)

    def _begin(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has been killed already
            os.write(self.gate, b".")
        os.close(self.gate)

    def _ended(self) -> bool:
        """Whether the child has; who else became our child (we may be process 1) is let go."""
        with contextlib.suppress(ChildProcessError):
            while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if found.si_pid == self.process.pid:
                    break
                os.waitpid(found.si_pid, 0)
        return self.process.poll() is not None

    def _turn(self, signals: Signals) -> None:
        """One round of whatever is ready."""
        patience = signals.pass_on()
        for descriptor, events in self._watch.poll(None if patience is None else patience * 1000):
            if descriptor == signals.wake:
                os.read(signals.wake, 4096)
            elif descriptor == STDIN:
                self._take_typed()
            elif descriptor == self.keeper.answers:
                self._listen()
            elif events & select.POLLOUT:
                self._give_typed()
            else:
                self._watch.unregister(descriptor)  # a terminal that everybody has left

    def _listen(self) -> None:
        self.keeper.listen()
        if not self.keeper.alive:
            self._watch.unregister(self.keeper.answers)
            if self.process.poll() is None:
                chat("broker: what masks the output was ended from outside, so the command is ended too.")
                self.process.terminate()

    def _resize(self) -> None:
        for pseudo in self.outlets.terminals:
            pseudo.resize()

    def _continue(self) -> None:
        """At the start, and whenever we are put in front again: sizes, raw mode, what is typed."""
        self._resize()
        if self.outlets.keyboard is not None:
            self.outlets.keyboard.start()
            if self.outlets.keyboard.raw and not self._typed:
                self._watch.register(STDIN, select.POLLIN)

    def _pause(self) -> None:
        if self.outlets.keyboard is not None:
            self.outlets.keyboard.restore()

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
        terminal = self.outlets.terminals[0].ours
        try:
            del self._typed[: os.write(terminal, self._typed)]
        except BlockingIOError:
            pass
        except OSError:  # everybody has left it
            self._typed.clear()
            return
        if self._typed:
            self._watch.register(terminal, select.POLLOUT)
        else:
            with contextlib.suppress(KeyError):
                self._watch.unregister(terminal)
            self._watch.register(STDIN, select.POLLIN)


def start(
    path: str, command: list[str], environment: Mapping[str, str | bytes], outlets: Outlets, keeper: Keeper
) -> Child:
    """The process of ``command`` (found at ``path``), with all that it would have without us; ``keeper`` knows it.

    It is in our process group and session, but for a terminal of its own to be in front of: that needs a session.
    """
    gate, opens = os.pipe()
    flags = ("1" if outlets.front else "", "1" if _is_script(path) else "", str(gate), str(os.getpid()))
    try:
        process = subprocess.Popen(  # noqa: S603  running what the caller says is the point
            [sys.executable, "-I", "-S", "-c", WITHIN, *flags, path, *command],
            stdin=outlets.ends[STDOUT] if outlets.keyboard is not None else None,
            stdout=outlets.ends[STDOUT],
            stderr=outlets.ends[STDERR],
            env=environment,
            pass_fds=(*outlets.inherited, gate),
            start_new_session=outlets.front,
        )
    except OSError as fault:
        os.close(opens)
        raise Refusal("COMMAND_NOT_STARTED", f"{command[0]} cannot be started: {fault.strerror}.") from None
    finally:
        os.close(gate)
    keeper.tell("child", process.pid)
    return Child(process, opens, outlets, keeper)


def _is_script(path: str) -> bool:
    with contextlib.suppress(OSError), Path(path).open("rb") as file:
        first = file.read(256)
        return b"\0" not in first and not first.startswith(b"\x7fELF")
    return False
