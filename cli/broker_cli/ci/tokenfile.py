"""An identity token in a file, read again at every login: its writer may have renewed it meanwhile."""

from __future__ import annotations

from pathlib import Path

from broker_cli import files
from broker_cli.ci.token import MAX_TOKEN, checked, for_audience

_CURE = "let what writes the file ask for that audience."


def token(path: Path, audience: str) -> str:
    """The token in the file."""
    content = files.read(path, 2 * MAX_TOKEN + 64, "identity token")
    try:
        text = files.text(content)  # a shell of Windows writes UTF-16, or a byte order mark
    except UnicodeDecodeError:
        text = content.decode("ascii", errors="replace")
    return for_audience(checked(text, f"the file {path}"), audience, _CURE)
