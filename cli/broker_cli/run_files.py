"""Secrets as files for a child: in memory only, private, gone afterwards even if the wrapper is killed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from broker_cli import files
from broker_cli.refusal import Refusal

MEMORY = Path("/dev/shm")  # noqa: S108  the folder made in it is private
_KEEPER = Path(__file__).with_name("run_keeper.py")


class Keeper:
    """The process that tidies up after us if we are killed. The command can read the environment that it has."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(  # noqa: S603  our own program
            [sys.executable, "-I", "-S", str(_KEEPER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what is sent to our group does not reach it
            cwd="/",
            env=self._environment,
        )
        return self

    def tell(self, what: str, value: object) -> None:
        """Name a ``folder`` to remove or a process ``group`` to end."""
        assert self._process.stdin is not None  # noqa: S101  it is a pipe
        with suppress(BrokenPipeError):  # somebody killed it; the orderly way remains
            self._process.stdin.write(f"{what} {value}\n".encode())
            self._process.stdin.flush()

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        with suppress(BrokenPipeError):
            self._process.communicate()


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
            self._keeper.tell("folder", self._folder)
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
