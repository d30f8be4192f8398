"""How long a test waits for what must happen: a limit costs nothing when all is well."""

from __future__ import annotations

PATIENCE = 15.0
"""What the tests' stores are given for database and disk, unless a test is about just that."""

PATIENT = ("--patience", f"{PATIENCE:g}")
"""As options of `init` and `dev`."""

HASTY = 3.0
"""For tests in which one of them does not answer: soon over, and long enough for whatever else they ask."""


def busy(seconds: float) -> float:
    """The most that what takes so long on a quiet computer may take on one that does much else besides."""
    return max(120.0, 6 * seconds)
