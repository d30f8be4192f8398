"""Asks a CI's own program on the runner for a token."""

from __future__ import annotations

import shutil
import subprocess

from broker_cli.budget import Budget
from broker_cli.refusal import Exit, Refusal


def ask(command: list[str], origin: str, within: Budget) -> str:
    """What the program printed. Its complaints are not passed on: they could quote a credential."""
    path = shutil.which(command[0])
    if path is None:
        raise Refusal(
            "IDENTITY_UNAVAILABLE",
            f"{origin} gives identity tokens by its program {command[0]}, which is not on the PATH of this job.",
            Exit.NOT_LOGGED_IN,
        )
    return within.insist(lambda seconds: _once([path, *command[1:]], command, seconds))


def _once(started: list[str], command: list[str], seconds: float) -> str:
    try:
        done = subprocess.run(  # noqa: S603  the program and its arguments are fixed
            started,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            check=True,
        )
    except subprocess.CalledProcessError as failed:
        raise _failed(command, f"ended with exit code {failed.returncode}") from None
    except (OSError, subprocess.TimeoutExpired) as fault:
        raise _failed(command, f"did not work ({type(fault).__name__})") from None
    return done.stdout.decode("ascii", errors="replace")


def _failed(command: list[str], why: str) -> Refusal:
    """What the program met it tells a person only, so it may have been away as well as have refused."""
    words = " ".join(command[:3])
    refusal = Refusal(
        "IDENTITY_UNAVAILABLE", f'No identity token: "{words}" {why}; run it in this job to see why.', Exit.UNAVAILABLE
    )
    refusal.passing = True
    return refusal
