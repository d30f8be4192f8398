"""A target's credential: read from its file whenever it is needed and never kept, so writing the file renews it."""

from __future__ import annotations

import re
from pathlib import Path

from broker import secret_files
from broker.core.errors import WrongState
from broker.core.reasons import Reason

MAX_CREDENTIAL_BYTES = 65536
_TOKEN = re.compile(rb"[!-~]{1,16384}")


def read_token(folder: Path, name: str) -> str:
    """The token in the file ``name`` of ``folder``, the one folder for this target's host.

    WrongState ``TARGET_CREDENTIAL_UNUSABLE`` says what is wrong. The file must be private (``secret_files``).
    """
    token = secret_files.line(read_credential(folder, name)).strip()
    if not _TOKEN.fullmatch(token):
        raise _unusable(name, "does not hold one token and nothing else")
    return token.decode("ascii")


def read_credential(folder: Path, name: str) -> bytes:
    """All of such a file, whatever it holds; refused as ``read_token`` does."""
    try:
        content = secret_files.read(folder / name, MAX_CREDENTIAL_BYTES)
    except secret_files.UnusableError as fault:
        raise _unusable(name, f"{fault.why}; {fault.cure}") from fault
    if len(content) > MAX_CREDENTIAL_BYTES:
        raise _unusable(name, f"is larger than {MAX_CREDENTIAL_BYTES} bytes")
    return content


def _unusable(name: str, why: str) -> WrongState:
    return WrongState(
        Reason.TARGET_CREDENTIAL_UNUSABLE,
        f"The token file {name} {why}; put the target's token there, in a file of mode 0600: "
        f"credentials/HOST:PORT/{name} on the broker's host.",
    )
