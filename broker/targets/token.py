"""A target's credential: read from its file whenever it is needed and never kept, so writing the file renews it."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from broker.core.errors import WrongState

MAX_CREDENTIAL_BYTES = 65536
_TOKEN = re.compile(rb"[!-~]{1,16384}")


def read_token(folder: Path, name: str) -> str:
    """The token in the file ``name`` of ``folder``, the one folder for this target's host.

    WrongState ``TARGET_CREDENTIAL_UNUSABLE`` says what is wrong. The file must be a regular one, not a link, and closed
    to everybody but its owner.
    """
    token = read_credential(folder, name).strip()
    if not _TOKEN.fullmatch(token):
        raise _unusable(name, "does not hold one token and nothing else")
    return token.decode("ascii")


def read_credential(folder: Path, name: str) -> bytes:
    """All of such a file, whatever it holds; refused as ``read_token`` does."""
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unusable(name, f"cannot be opened ({error.strerror})") from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise _unusable(name, "is not a regular file")
        if stat.S_IMODE(mode) & 0o077:
            raise _unusable(name, "can be read by others than its owner (chmod 0600)")
        content = os.read(descriptor, MAX_CREDENTIAL_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > MAX_CREDENTIAL_BYTES:
        raise _unusable(name, f"is larger than {MAX_CREDENTIAL_BYTES} bytes")
    return content


def _unusable(name: str, why: str) -> WrongState:
    return WrongState(
        "TARGET_CREDENTIAL_UNUSABLE",
        f"The token file {name} {why}; put the target's token there, in a file of mode 0600: "
        f"credentials/HOST:PORT/{name} on the broker's host.",
    )
