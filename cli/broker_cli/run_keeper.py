"""Outlives a wrapper that was killed outright: removes its secret files and ends its child.

Runs as a program of its own (standard library only). It reads lines, ``folder PATH`` and ``group ID``, until the
wrapper's end of the pipe closes; the wrapper that ends in order kills it first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys


def main() -> None:
    """Wait for the end of the wrapper, then tidy up after it."""
    told = dict(line.rstrip("\n").split(" ", 1) for line in sys.stdin)
    if "group" in told:
        with contextlib.suppress(OSError):  # gone already
            os.killpg(int(told["group"]), signal.SIGTERM)
    if "folder" in told:
        import shutil  # noqa: PLC0415  only now: it would cost the start of every job

        shutil.rmtree(told["folder"], ignore_errors=True)  # with whatever the command has put beside our files


if __name__ == "__main__":
    main()
