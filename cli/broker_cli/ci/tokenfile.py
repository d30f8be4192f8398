"""An identity token in a file, read again at every login: whoever writes it may have renewed it meanwhile."""

from __future__ import annotations

from pathlib import Path

from broker_cli import files
from broker_cli.ci.token import MAX_TOKEN, checked, for_audience

_CURE = "let what writes the file ask for that audience."


def token(path: Path, audience: str) -> str:
    """The token in the file."""
    content = files.read(path, MAX_TOKEN + 64, "identity token")
    return for_audience(checked(content.decode("ascii", errors="replace"), f"the file {path}"), audience, _CURE)
