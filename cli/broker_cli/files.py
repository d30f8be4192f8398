"""Files the command reads and writes: limits on the way in, exclusive and private on the way out (CL-01, CL-02)."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from broker_cli.refusal import Exit, Refusal
from broker_cli.screen import chat

PRIVATE = 0o600


def take(source: str, limit: int, what: str) -> bytes:
    """The bytes of a file, a descriptor (``/dev/fd/N``) or standard input (``-``); at most ``limit`` of them."""
    if source == "-":
        if sys.stdin is None:
            raise Refusal("INPUT_CLOSED", f"Standard input is closed, and the {what} was to come from it.", Exit.USAGE)
        if sys.stdin.isatty():
            chat(f"Type the {what}; end with ctrl-D on a line of its own.")
        content = sys.stdin.buffer.read(limit + 1)
    else:
        content = read(Path(source), limit, what)
    if len(content) > limit:
        raise Refusal("INPUT_TOO_LONG", f"The {what} is longer than {limit} bytes, the most that is taken.", Exit.USAGE)
    return content


def read(path: Path, limit: int, what: str) -> bytes:
    """At most ``limit`` + 1 bytes of a file, so that the caller can tell that it is too long."""
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as fault:
        raise unreadable(path, what, fault) from None


def text(content: bytes) -> str:
    """Text that people write: UTF-8, or as Windows saves it; UnicodeDecodeError for anything else."""
    return content.decode("utf-16" if content[:2] in {b"\xff\xfe", b"\xfe\xff"} else "utf-8-sig")


def read_private(path: Path, limit: int, what: str) -> bytes:
    """As ``read``, for a secret: refused unless the file is ours and nobody else can read it."""
    try:
        with path.open("rb") as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise Refusal("FILE_NOT_REGULAR", f"The {what} {path} is not a regular file.")
            if state.st_uid not in {0, os.geteuid()}:
                raise Refusal(
                    "FILE_NOT_YOURS", f"The {what} {path} belongs to another user; copy it to a file of yours."
                )
            if state.st_mode & 0o077 and not _handed_over(state):
                raise Refusal(
                    "FILE_MODE_LOOSE",
                    f"The {what} {path} can be read by others (mode {state.st_mode & 0o777:04o}); "
                    f"it may be known to them already: renew it, or if you are sure: chmod 600 {path}",
                )
            return file.read(limit + 1)
    except OSError as fault:
        raise unreadable(path, what, fault) from None


def _handed_over(state: os.stat_result) -> bool:
    """Root's, and nobody may write it, and one group of ours may read it: so Kubernetes hands a secret to a pod."""
    return state.st_uid == 0 and not state.st_mode & 0o337 and state.st_gid in {os.getegid(), *os.getgroups()}


def create(path: Path, content: bytes) -> None:
    """Make a new private file (0600). Refused when anything, a link too, has the name; gone again if writing fails."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE)
    except FileExistsError:
        raise Refusal(
            "FILE_EXISTS", f"{path} exists; nothing is overwritten: name another file.", Exit.CONFLICT
        ) from None
    except OSError as fault:
        raise Refusal("FILE_NOT_WRITTEN", f"{path} cannot be made: {fault.strerror}.") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as fault:
        path.unlink(missing_ok=True)
        raise Refusal("FILE_NOT_WRITTEN", f"{path} cannot be written: {fault.strerror}.") from None


def replace(path: Path, content: bytes) -> None:
    """Put ``content`` in the place of a file in one step; readers see the old one or the new one."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    create(fresh, content)
    try:
        fresh.replace(path)
    except OSError as fault:
        fresh.unlink(missing_ok=True)
        raise Refusal("FILE_NOT_WRITTEN", f"{path} cannot be replaced: {fault.strerror}.") from None


def unreadable(path: Path, what: str, fault: OSError) -> Refusal:
    """The refusal for a file that cannot be read."""
    return Refusal("FILE_UNREADABLE", f"The {what} {path} cannot be read: {fault.strerror or 'it is not a file'}.")
