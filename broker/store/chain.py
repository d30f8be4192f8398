"""The files of one audit chain (docs/audit-format.md). Used by one thread; knows nothing of waiting callers."""

from __future__ import annotations

import errno
import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from broker.core.entries import GENESIS, AuditEntry, encode, encode_head
from broker.core.model import AuditHead
from broker.store.private import create

SUFFIX = ".jsonl"

FILE = re.compile(rf"(?P<chain>(?P<replica>.+)-\d{{8}}T\d{{12}}Z-[0-9a-f]{{16}})\.\d{{6}}{re.escape(SUFFIX)}")
"""The name of a journal file."""

LOW_WATER = 1024 * 1024
"""Bytes that must be free on the journal's volume for it to count as writable."""


@dataclass(frozen=True, slots=True)
class Tail:
    """How far a chain has come."""

    chain: str
    sequence: int  # of the last line; 0 before the first
    hash: str
    entry: int  # the sequence of the last line that is not itself a head


class Chain:
    """Lines are staged, then made durable together; what fails is taken back as if it had never been."""

    def __init__(self, folder: Path, replica: str, started: datetime, file_bytes: int) -> None:
        self.name = f"{replica}-{started:%Y%m%dT%H%M%S%fZ}-{secrets.token_hex(8)}"
        self.durable = Tail(self.name, 0, GENESIS, 0)
        self._staged, self._lines = self.durable, list[bytes]()
        self._folder, self._file_bytes = folder, file_bytes
        self._file, self._number, self._size = -1, 0, 0
        self._full, self._name = False, ""

    def stage(self, record: AuditEntry | AuditHead) -> None:
        """Give the record the next place in the chain."""
        last = self._staged
        sequence = last.sequence + 1
        if isinstance(record, AuditEntry):
            line, digest = encode(record, self.name, sequence, last.hash)
            self._staged = Tail(self.name, sequence, digest, sequence)
        else:
            line, digest = encode_head(record, sequence, last.hash)
            self._staged = Tail(self.name, sequence, digest, last.entry)
        self._lines.append(line + b"\n")

    def mark(self) -> tuple[Tail, int]:
        """Where the staged lines end."""
        return self._staged, len(self._lines)

    def unstage(self, mark: tuple[Tail, int]) -> None:
        """Take back what was staged since the mark."""
        self._staged, count = mark
        del self._lines[count:]

    def commit(self) -> None:
        """Make the staged lines durable. After an error none of them counts, and ``restore`` must come next."""
        lines, self._lines = b"".join(self._lines), []
        self._open_for(len(lines))
        view = memoryview(lines)
        while view:
            view = view[os.write(self._file, view) :]
        os.fdatasync(self._file)
        self._size += len(lines)
        self.durable = self._staged

    def restore(self, fault: BaseException) -> None:
        """Cut the file back to its last durable line; an OSError here means that the chain has to be left."""
        self._staged, self._lines = self.durable, []
        if self._file < 0:
            return
        cause = fault.errno if isinstance(fault, OSError) else 0
        if cause == errno.ESTALE:
            raise fault
        os.ftruncate(self._file, self._size)
        os.fdatasync(self._file)
        self._check_ours()
        self._full = cause == errno.EFBIG  # a limit on the size of one file: the next one has room

    def check(self) -> None:
        """OSError when the next line could not be written: no room, read-only, or the file taken away."""
        if self._file >= 0:
            self._check_ours()
        volume = os.statvfs(self._folder)
        if volume.f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if volume.f_bavail * volume.f_frsize < LOW_WATER:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def discard(self) -> None:
        """Remove the file of a chain whose first line could not be written."""
        if self._file >= 0:
            self.close()
            with suppress(OSError):  # an empty or torn file is no harm
                self._path(self._number).unlink()

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _open_for(self, length: int) -> None:
        if self._file >= 0 and not self._full and (self._size == 0 or self._size + length <= self._file_bytes):
            self._check_ours()
            return
        number = self._number + 1
        file = create(self._path(number), os.O_WRONLY | os.O_APPEND)
        self.close()
        self._file, self._number, self._size, self._full = file, number, 0, False
        self._name = str(self._path(number))
        _sync_folder(self._folder)

    def _path(self, number: int) -> Path:
        return self._folder / f"{self.name}.{number:06d}{SUFFIX}"

    def _check_ours(self) -> None:
        found = os.fstat(self._file)
        if found.st_nlink != 1 or found.st_size != self._size or not self._in_place(found):
            raise OSError(errno.ESTALE, "the journal file was changed by another program")

    def _in_place(self, found: os.stat_result) -> bool:
        """Whether the open file is the one under its name: it may have been moved, alone or with its folder."""
        try:
            return os.path.samestat(found, os.lstat(self._name))
        except OSError:
            return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
