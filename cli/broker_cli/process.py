"""What the kernel tells of a process, and what a process can have from it. Standard library only."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress
from pathlib import Path

_PR_SET_DUMPABLE = 4
_SELF = Path("/proc/self")
STANDARD = (0, 1, 2)


def hide_memory() -> None:
    """No core dump of this process, and no look into it by others of the same user (CL-06). Not inherited."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415  slow to load

        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def pending(pid: int) -> frozenset[int]:
    """The signals that were sent to a process which blocks them and has not taken them; none when it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            name, _, mask = line.partition(":")
            if name == "ShdPnd":
                bits = int(mask, 16)
                return frozenset(number for number in range(1, 65) if bits >> (number - 1) & 1)
    return frozenset()


def descendants(pid: int) -> list[int]:
    """The children of a process, theirs, and so on; parents before children."""
    children: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            parent = int((place / "stat").read_bytes().rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(int(place.name))
    found = list(children.get(pid, ()))
    for one in found:
        found += children.get(one, ())
    return found


def inherited() -> tuple[int, ...]:
    """The descriptors above 2 that the process that started us gave us; what Python opens itself is not inheritable."""
    numbers = sorted(int(path.name) for path in (_SELF / "fd").iterdir())
    return tuple(one for one in numbers if one not in STANDARD and given(one))


def given(descriptor: int) -> bool:
    """Whether a descriptor was open when we were started. ``occupy`` fills those that were not."""
    try:
        return os.get_inheritable(descriptor)
    except OSError:
        return False


def occupy() -> None:
    """Let no file that is opened later be taken for a standard one that was closed (``<&-``, ``>&-``)."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) in STANDARD:
        pass
    os.close(descriptor)


def environment() -> dict[str, str]:
    """What we were started with: Python itself sets LC_CTYPE where it takes the place of the C locale."""
    found = dict(os.environ)
    with suppress(OSError):
        if not any(one.startswith(b"LC_CTYPE=") for one in (_SELF / "environ").read_bytes().split(b"\0")):
            found.pop("LC_CTYPE", None)
    return found


def same_place(one: int, other: int) -> bool:
    """Whether what goes to two descriptors stays in order: one pipe, terminal, socket, or one opening of a file."""
    first, second = os.fstat(one), os.fstat(other)
    if (first.st_dev, first.st_ino) != (second.st_dev, second.st_ino):
        return False
    return not stat.S_ISREG(first.st_mode) or _opening(one) == _opening(other)


def _opening(descriptor: int) -> list[str]:
    """How and how far a file is open, the same for two descriptors of one opening."""
    return (_SELF / "fdinfo" / str(descriptor)).read_text(encoding="ascii").splitlines()[:2]


def is_null(descriptor: int) -> bool:
    """Whether it is /dev/null, where nobody reads."""
    found = os.fstat(descriptor)
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == os.makedev(1, 3)
