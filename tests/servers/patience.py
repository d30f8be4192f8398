"""How long a test waits for what must happen: a limit costs nothing when all is well, and a busy computer takes long."""

from __future__ import annotations

PATIENCE = 15.0
"""What the tests' stores are given for database and disk, unless a test is about just that."""

PATIENT = ("--patience", f"{PATIENCE:g}")
"""As options of `init` and `dev`."""

USUAL = 1.0
"""What a store has that is told nothing; for tests in which database or disk do not answer."""

HANGS = 60.0
"""Whatever takes longer than this does not end at all."""
