"""Asks a CI's own program on the runner for a token."""

from __future__ import annotations

import shutil
import subprocess

from broker_cli.refusal import Exit, Refusal

TIMEOUT = 30.0


def ask(command: list[str], origin: str) -> str:
    """What the program printed. Its complaints are not passed on: they could quote a credential."""
    path = shutil.which(command[0])
    if path is None:
        raise Refusal(
            "IDENTITY_UNAVAILABLE",
            f"{origin} gives identity tokens by its program {command[0]}, which is not on the PATH of this job.",
            Exit.NOT_LOGGED_IN,
        )
    try:
        done = subprocess.run(  # noqa: S603  the program and its arguments are fixed
            [path, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT,
            check=True,
        )
    except subprocess.CalledProcessError as failed:
        raise _failed(command, f"ended with exit code {failed.returncode}") from None
    except (OSError, subprocess.TimeoutExpired) as fault:
        raise _failed(command, f"did not work ({type(fault).__name__})") from None
    return done.stdout.decode("ascii", errors="replace")


def _failed(command: list[str], why: str) -> Refusal:
    words = " ".join(command[:3])
    return Refusal(
        "IDENTITY_UNAVAILABLE", f'No identity token: "{words}" {why}; run it in this job to see.', Exit.NOT_LOGGED_IN
    )
