"""Secrets as files for a child: in memory only, private, gone afterwards even if the wrapper is killed."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from broker_cli import files, process
from broker_cli.refusal import Refusal

MEMORY = Path("/dev/shm")  # noqa: S108  the folder made in it is private
_KEEPER = Path(__file__).with_name("run_keeper.py")


class Keeper:
    """Our end of ``run_keeper``, which shows the output and tidies up after us if we are killed.

    It is started before there is anything to keep, so that a job does not wait for it. The command can read the
    environment that it has.
    """

    def __init__(self, environment: Mapping[str, str], ways: Sequence[tuple[int, int]]) -> None:
        self._environment, self._ways = environment, ways
        self._answers = b""
        self._witness = 0
        self._shown = False
        self.lost: list[str] = []
        """Why output could not be written."""
        self.alive = True

    def __enter__(self) -> Self:
        orders, self._orders = os.pipe()
        given = [orders, *(one for way in self._ways for one in way)]
        self._process = subprocess.Popen(  # noqa: S603  our own program
            [sys.executable, "-I", "-S", str(_KEEPER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=given,
            cwd="/",
            env=self._environment,
        )
        for one in given:
            os.close(one)
        assert self._process.stdout is not None  # noqa: S101  it is a pipe
        self.answers = self._process.stdout.fileno()
        os.set_blocking(self.answers, False)
        self.tell("ways", {"streams": self._ways, "witness": orders})
        return self

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def tell(self, what: str, value: object) -> None:
        """Say one thing of those that ``run_keeper`` lists."""
        assert self._process.stdin is not None  # noqa: S101  it is a pipe
        with suppress(BrokenPipeError):  # somebody killed it, which ``listen`` tells
            self._process.stdin.write(json.dumps({what: value}).encode() + b"\n")
            self._process.stdin.flush()

    def listen(self) -> None:
        """Take the answers that are there."""
        try:
            while piece := os.read(self.answers, 4096):
                self._answers += piece
            self.alive = False
        except BlockingIOError:
            pass
        *lines, self._answers = self._answers.split(b"\n")
        for line in lines:
            answer = json.loads(line)
            self._witness = answer.get("witness", self._witness)
            self._shown = self._shown or "shown" in answer
            self.lost += [answer["lost"]] if "lost" in answer else []

    def ready(self) -> None:
        """Wait until it can see signals, and show output."""
        while self.alive and not self._witness:
            select.select([self.answers], [], [])
            self.listen()

    @property
    def shown(self) -> bool:
        """Whether all that was written before ``drain`` has been shown."""
        return self._shown

    def saw(self, number: int) -> bool:
        """Whether a signal came to our whole group (or to every process there is), not to us alone."""
        return number in process.pending(self._witness)

    def forget(self, number: int) -> None:
        """Let the next one of this number be told from this one."""
        with suppress(BrokenPipeError):
            os.write(self._orders, bytes([number]))
        until = time.monotonic() + 1
        while self.saw(number) and time.monotonic() < until:
            time.sleep(0.001)

    def __exit__(self, *_: object) -> None:
        self.tell("over", None)
        os.close(self._orders)
        for pipe in filter(None, (self._process.stdin, self._process.stdout)):
            with suppress(BrokenPipeError):
                pipe.close()
        with suppress(subprocess.TimeoutExpired):  # somebody still holds the output: it stays, and is nobody's child
            self._process.wait(0)


class MemoryFiles:
    """A private folder on a file system in memory, made at the first file and removed at the end."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._folder: Path | None = None
        self._names: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            # Ours first; then whatever the command has put beside them, folders of its own too.
            for name in self._names:
                with suppress(OSError):  # moved away, or a folder of that name is there now
                    (self._folder / name).unlink()
            shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, name: str, value: bytes) -> Path:
        """A new file, 0600, with ``value``."""
        if self._folder is None:
            check_memory(Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines())
            self._folder = Path(tempfile.mkdtemp(prefix="broker-", dir=MEMORY))
            self._keeper.tell("folder", str(self._folder))
        self._names.append(name)
        files.create(self._folder / name, value)
        return self._folder / name


def check_memory(mounts: Iterable[str]) -> None:
    """Refuse to put a secret on a disk."""
    kinds = {line.split()[1]: line.split()[2] for line in mounts}
    if kinds.get(str(MEMORY)) not in {"tmpfs", "ramfs"}:
        raise Refusal(
            "NO_MEMORY_FILES",
            f"{MEMORY} is no file system in memory here, and a secret is not written to a disk: give it as a variable.",
        )
