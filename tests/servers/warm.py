"""`python -m broker` and the command line in a process that has loaded their modules already: a fork of one that did
that and nothing else.

To load them takes most of what a short command costs. What is to be shown of a start itself (the interpreter's options,
what the environment does to libraries, what other programs see of the process) needs a process of its own.
"""

from __future__ import annotations

import faulthandler
import fcntl
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import IO, Any, Self

from broker_cli import main as command_line
from broker_cli.process import occupy

from tests.servers.softhsm import FRESH

SECONDS = 200
"""How long a command to its end may take."""


def _run(
    words: tuple[str, ...], environment: Mapping[str, str], umask: int | None, out: Connection | str, said: str
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    if umask is not None:
        os.umask(umask)
    for number, place in ((1, out), (2, said)):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.dup2(os.open(place, flags, 0o600) if isinstance(place, str) else place.fileno(), number)
    faulthandler.enable()
    warnings.simplefilter("error")
    sys.argv = ["broker", *words]
    runpy.run_module("broker", run_name="__main__", alter_sys=True)


class WarmProcess:
    """A running one, with what of ``subprocess.Popen`` its users need; stderr is added to a file."""

    def __init__(self, words: tuple[str, ...], *, said: Path, environment: Mapping[str, str], umask: int) -> None:
        reader, writer = FRESH.Pipe(duplex=False)
        self._process: ForkServerProcess = FRESH.Process(
            target=_run, args=(words, dict(environment), umask, writer, str(said))
        )
        self._process.start()
        writer.close()
        self.stdout: IO[bytes] | None = os.fdopen(os.dup(reader.fileno()), "rb")
        reader.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("broker", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Process = subprocess.Popen[bytes] | WarmProcess


def begin(words: tuple[str, ...], *, warm: bool, said: Path, environment: Mapping[str, str], umask: int) -> Process:
    """One that runs on: warm, or started by the interpreter."""
    if warm:
        return WarmProcess(words, said=said, environment=environment, umask=umask)
    program = [sys.executable, "-P", "-m", "broker", *words]
    with said.open("ab") as log:
        return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=log, env=environment, umask=umask)


def run(words: tuple[str, ...], *, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """To its end, which must come within minutes."""
    with tempfile.TemporaryDirectory() as folder:
        out, said = Path(folder, "out"), Path(folder, "said")
        process = FRESH.Process(target=_run, args=(words, dict(environment), None, str(out), str(said)))
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(words, SECONDS)
        texts = [file.read_text() if file.exists() else "" for file in (out, said)]
        return subprocess.CompletedProcess(words, process.exitcode, *texts)


def _command_line(
    words: tuple[str, ...],
    environment: Mapping[str, str],
    folder: str,
    login: bool,  # noqa: FBT001 - of a process's arguments
    *ends: Connection,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, end in enumerate(ends):
        os.dup2(end.fileno(), number)
        end.close()
    if login:
        os.setsid()
        fcntl.ioctl(2, termios.TIOCSCTTY, 0)
    sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115 (for the life of the process)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace")  # noqa: SIM115
    sys.argv = ["broker", *words]
    occupy()
    command_line.main()


class WarmCommandLine:
    """A running one, with what of ``subprocess.Popen`` its users need.

    Each of ``stdin``, ``stdout`` and ``stderr`` is a file or its descriptor, ``DEVNULL`` or ``PIPE``. With ``login`` it
    leads a session, and the terminal at ``stderr`` is its own.
    """

    def __init__(
        self,
        words: tuple[str, ...],
        *,
        environment: Mapping[str, str],
        folder: Path | None = None,
        login: bool = False,
        **ends: Any,
    ) -> None:
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        self.stderr: IO[bytes] | None = None
        given = [self._end(name, ends.get(name, subprocess.PIPE)) for name in ("stdin", "stdout", "stderr")]
        self._process: ForkServerProcess = FRESH.Process(
            target=_command_line, args=(words, dict(environment), str(folder or Path.cwd()), login, *given)
        )
        self._process.start()
        for end in given:
            end.close()

    def _end(self, name: str, asked: int | IO[bytes]) -> Connection:
        """What the process gets; of a pipe the other end becomes this one's attribute."""
        writes = name != "stdin"
        if asked == subprocess.PIPE:
            reader, writer = os.pipe()
            ours, theirs = (reader, writer) if writes else (writer, reader)
            setattr(self, name, os.fdopen(ours, "rb" if writes else "wb", -1 if writes else 0))
        elif asked == subprocess.DEVNULL:
            theirs = os.open(os.devnull, os.O_RDWR)
        else:
            theirs = os.dup(asked if isinstance(asked, int) else asked.fileno())
        return Connection(theirs)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("broker", timeout or 0)
        return self._process.exitcode

    def communicate(self, given: bytes | None = None, timeout: float = SECONDS) -> tuple[bytes, bytes]:
        """All that it still says, when it has got this and no more."""
        give_up = threading.Timer(timeout, self.kill)
        give_up.start()
        with ThreadPoolExecutor(2) as beside:
            told = [beside.submit(end.read if end else bytes) for end in (self.stdout, self.stderr)]
            if self.stdin:
                with suppress(BrokenPipeError), self.stdin as end:
                    end.write(given or b"")
            out, said = (one.result() for one in told)
        self.wait(timeout)
        give_up.cancel()
        return out, said

    def send_signal(self, number: int) -> None:
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for end in (self.stdout, self.stderr, self.stdin):
            if end:
                with suppress(BrokenPipeError):
                    end.close()
        self.wait(SECONDS)


def run_command_line(
    words: tuple[str, ...], *, environment: Mapping[str, str], folder: Path | None = None, given: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """`broker` to its end, with ``given`` as its input; its outputs are pipes."""
    with WarmCommandLine(words, environment=environment, folder=folder) as process:
        out, said = process.communicate(given)
    assert process.returncode is not None
    return subprocess.CompletedProcess(words, process.returncode, out, said)


def as_text(done: subprocess.CompletedProcess[bytes]) -> subprocess.CompletedProcess[str]:
    """The same with its outputs decoded."""
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())
