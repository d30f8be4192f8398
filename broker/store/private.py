"""Files and folders that only the broker may read, whatever the umask says (0600 and 0700)."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
from pathlib import Path

from broker import secret_files
from broker.core.errors import BrokerError, Unavailable, WrongState
from broker.core.reasons import Reason

MAX_PASSWORD_BYTES = 1024
_NAME = re.compile(r"[0-9a-f]{16}", re.ASCII)


def private_folder(path: Path) -> None:
    """Make the folder (0700) if it is absent; WrongState ``FILE_NOT_PRIVATE`` if others may enter the one there."""
    try:
        path.mkdir(mode=0o700)
        path.chmod(0o700)
    except FileExistsError:
        pass
    except OSError as fault:
        raise unusable(path, fault) from fault
    _check(path, path.lstat(), stat.S_ISDIR, "chmod 700")


def check_folder(path: Path) -> None:
    """WrongState ``FILE_NOT_PRIVATE`` if there is one that others may enter; nothing is made."""
    if path.exists():
        _check(path, path.lstat(), stat.S_ISDIR, "chmod 700")


def private_file(path: Path) -> None:
    """Make an empty file (0600) if it is absent; WrongState ``FILE_NOT_PRIVATE`` if others may read the one there."""
    try:
        os.close(create(path, os.O_RDWR))
    except FileExistsError:
        pass
    except OSError as fault:
        raise unusable(path, fault) from fault
    _check(path, path.lstat(), stat.S_ISREG, "chmod 600")


def lasting_name(path: Path) -> str:
    """The 16 random hex digits in a file (0600), which is made if it is absent."""
    try:
        with os.fdopen(create(path, os.O_WRONLY), "w", encoding="ascii") as file:
            file.write(secrets.token_hex(8))
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        pass
    except OSError as fault:
        raise unusable(path, fault) from fault
    _check(path, path.lstat(), stat.S_ISREG, "chmod 600")
    name = path.read_text(encoding="ascii", errors="replace")
    if not _NAME.fullmatch(name):
        raise WrongState(
            Reason.FILE_DAMAGED, f"{path} does not hold 16 hex digits any more; put it back from a backup."
        )
    return name


def create(path: Path, flags: int) -> int:
    """A descriptor of a new file with exactly the mode 0600; FileExistsError when there is one, a link included."""
    descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)  # the umask may have taken the owner's own bits
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def open_regular(path: Path) -> int | None:
    """A descriptor to read a regular file with; None for a link, a pipe or whatever else has been put in its place."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as fault:
        if fault.errno in {errno.ELOOP, errno.ENXIO}:  # a link; a socket
            return None
        raise
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None


def only_process(path: Path) -> int:
    """Lock ``path`` for this process alone and return the descriptor that holds the lock until it is closed."""
    private_file(path)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as fault:
        raise unusable(path, fault) from fault
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as fault:
        os.close(descriptor)
        if fault.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
            raise unusable(path, fault) from fault
        raise WrongState(
            Reason.STORE_IN_USE,
            "Another broker process has this SQLite database open; stop it first, or use PostgreSQL for several.",
        ) from None
    return descriptor


def password(path: Path) -> str:
    """The one line in a private file (``secret_files``)."""
    text = secret_files.line(secret(path, MAX_PASSWORD_BYTES + 8))
    if not text or len(text) > MAX_PASSWORD_BYTES or b"\n" in text or b"\0" in text:
        raise WrongState(
            Reason.PASSWORD_FILE_INVALID, f"The password file {path} does not hold one line of 1 to 1024 bytes."
        )
    return os.fsdecode(text)


def secret(path: Path, most: int) -> bytes:
    """At most ``most`` + 1 bytes of a private file; WrongState ``FILE_NOT_PRIVATE`` if it is none."""
    try:
        return secret_files.read(path, most)
    except secret_files.UnusableError as fault:
        if isinstance(fault.__cause__, FileNotFoundError):
            raise unusable(path, fault.__cause__) from fault
        raise WrongState(Reason.FILE_NOT_PRIVATE, f"{path} {fault.why}; {fault.cure}.") from fault


def strictly_private(path: Path) -> None:
    """WrongState ``FILE_NOT_PRIVATE`` unless the file has a mode that libpq takes too, which passes over any other."""
    secret(path, 0)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise WrongState(Reason.FILE_NOT_PRIVATE, f"{path} is not of mode 0600, and libpq takes no other; set it.")


def unusable(path: Path, fault: OSError) -> BrokerError:
    """The refusal for a file that the system would not open."""
    return Unavailable(Reason.STORE_UNAVAILABLE, f"The file {path} cannot be used: {os.strerror(fault.errno or 0)}.")


def _check(path: Path, found: os.stat_result, kind: object, cure: str) -> None:
    if not callable(kind) or not kind(found.st_mode):
        raise WrongState(
            Reason.FILE_NOT_PRIVATE, f"{path} is not of the expected kind (a link is not followed); move it."
        )
    if found.st_uid != os.geteuid():
        raise WrongState(Reason.FILE_NOT_PRIVATE, f"{path} belongs to another user; give it to the broker's own.")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise WrongState(Reason.FILE_NOT_PRIVATE, f"{path} is open to other users; close it with {cure}.")
    if stat.S_ISREG(found.st_mode) and found.st_nlink != 1:
        raise WrongState(Reason.FILE_NOT_PRIVATE, f"{path} has a second name (hard link); remove that one.")
