"""Reading a secret from a file, as hosts, systemd, Kubernetes and Docker hand it over (docs/operations.md, Secrets).

A file is private when nobody but root and this process can read it. That is so with mode 0600 or stricter and this user
or root as its owner; with an access list that names no other reader (systemd's LoadCredential); and for a file of
root's that nobody may write and one group of this process may read (0440: Kubernetes with fsGroup): root chose it.

A link is followed where it stays in its own folder, as all of a Kubernetes volume do, or leads into the folder of
systemd's credentials: else an operator who can name a file could have another secret read in its place.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ACCESS_LIST = "system.posix_acl_access"
_USER, _GROUP_OF_FILE, _GROUP, _MASK, _OTHER = 0x02, 0x04, 0x08, 0x10, 0x20
_SWAPS = 3
"""How often a link may be put in another's place (Kubernetes, at each change) while it is being followed."""


class UnusableError(Exception):
    """A file that is not taken. ``why`` follows its name in a sentence, ``cure`` is what can be done about it."""

    def __init__(self, why: str, cure: str) -> None:
        super().__init__(why)
        self.why = why
        self.cure = cure


def read(path: Path, most: int, *, links: bool = False) -> bytes:
    """The file's content, at most ``most`` + 1 bytes; ``UnusableError`` unless it is private.

    ``links``: follow a link wherever it leads, for what is named by the configuration alone.
    """
    descriptor = _opened(path, links=links)
    try:
        _refuse_open(descriptor)
        content = b""
        while len(content) <= most and (more := os.read(descriptor, most + 1 - len(content))):
            content += more
    finally:
        os.close(descriptor)
    return content


def check(path: Path, *, links: bool = False) -> None:
    """``UnusableError`` unless ``read`` would take the file."""
    descriptor = _opened(path, links=links)
    try:
        _refuse_open(descriptor)
    finally:
        os.close(descriptor)


def line(content: bytes) -> bytes:
    """The one line of a file, without its end and without what editors and shells of Windows put around it."""
    return content.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").removesuffix(b"\r")


def _refuse_open(descriptor: int) -> None:
    """``UnusableError`` if anybody but root and this process could read or change the open file."""
    found = os.fstat(descriptor)
    mode, mine = stat.S_IMODE(found.st_mode), found.st_uid == os.geteuid()
    if not stat.S_ISREG(found.st_mode):
        raise UnusableError("is not a regular file", "put the secret into one")
    if found.st_uid not in {0, os.geteuid()}:
        raise UnusableError("belongs to another user", "give it to the user that runs the broker, with mode 0600")
    if mode & 0o007:
        raise UnusableError(f"is open to other users (mode {mode:04o})", _closing(mine=mine))
    if mode & 0o070 and not _for_us_alone(descriptor, found):
        raise UnusableError(f"is open to other users (mode {mode:04o})", _closing(mine=mine))


def _closing(*, mine: bool) -> str:
    if mine:
        return "close it to them (chmod 600)"
    return (
        "it is root's: let it have mode 0400 and this user as its owner, or mode 0440 and a group of this user's "
        "(Kubernetes: defaultMode: 0440 and fsGroup; Docker: uid, mode: 0400 of the secret; systemd: LoadCredential=)"
    )


def _for_us_alone(descriptor: int, found: os.stat_result) -> bool:
    readers = list(_readers(descriptor, found))
    groups = {os.getegid(), *os.getgroups()}
    fixed = found.st_uid == 0 and not found.st_mode & 0o222
    for tag, who in readers:
        if tag == _USER and who not in {0, os.geteuid()}:
            return False
        if tag in {_GROUP, _GROUP_OF_FILE} and not (fixed and who in groups):
            return False
        if tag == _OTHER:
            return False
    return True


def _readers(descriptor: int, found: os.stat_result) -> Iterator[tuple[int, int]]:
    """Who may do anything with the file, besides its owner: by its access list, or by the mode where it has none."""
    try:
        acl = os.getxattr(descriptor, _ACCESS_LIST)
    except OSError as fault:
        if fault.errno not in {errno.ENODATA, errno.ENOTSUP}:  # it has none, or this kind of file system knows none
            raise UnusableError(
                f"does not tell its access list ({fault.strerror})", "put it on another file system"
            ) from fault
        yield _GROUP_OF_FILE, found.st_gid
        return
    entries = list(struct.iter_unpack("<HHI", acl[4:]))
    mask = next((may for tag, may, _ in entries if tag == _MASK), 7)
    for tag, may, who in entries:
        if tag == _OTHER and may:
            yield tag, 0
        if tag in {_USER, _GROUP, _GROUP_OF_FILE} and may & mask:
            yield tag, found.st_gid if tag == _GROUP_OF_FILE else who


def _opened(path: Path, *, links: bool, swaps: int = _SWAPS) -> int:
    try:
        return os.open(_end_of(path, links=links) if path.is_symlink() else path, _FLAGS)
    except OSError as fault:
        if swaps and fault.errno == errno.ENOENT and path.is_symlink():
            return _opened(path, links=links, swaps=swaps - 1)
        raise UnusableError(f"cannot be opened ({fault.strerror})", _making(fault)) from fault


def _making(fault: OSError) -> str:
    if fault.errno in {errno.EACCES, errno.EPERM}:
        return "let the user that runs the broker read it, and nobody else"
    return "create it with mode 0600"


def _end_of(path: Path, *, links: bool) -> str:
    """Where a link leads; ``UnusableError`` for one that is somebody else's, or leads out of its folder."""
    end = os.path.realpath(path)
    if links:
        return end
    if path.lstat().st_uid not in {0, os.geteuid()}:
        raise UnusableError("is a link of another user's", "put the file itself there")
    within = [os.path.realpath(path.parent)]
    if credentials := os.environ.get("CREDENTIALS_DIRECTORY"):
        within.append(os.path.realpath(credentials))
    if not any(os.path.commonpath([end, folder]) == folder for folder in within):
        raise UnusableError(
            "is a link that leads out of its folder", "put the file itself there, or a link to a file in that folder"
        )
    return end
