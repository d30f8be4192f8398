"""``broker doctor``: finds the set-up mistakes that are made most, and names the fix of each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from broker_cli import ask, doctor_caller, doctor_host
from broker_cli.__main__ import environment
from broker_cli.doctor_checks import Check, failed, ok, warning
from broker_cli.output import Output, formatted
from broker_cli.refusal import Exit
from broker_cli.screen import chat
from broker_cli.wire import connection

SERVER_SECONDS = 60
MAX_ANSWER = 1024 * 1024
COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}
SEEN_BETTER = {
    "certificates": ("server.certificate_file",),
    "ports": ("server.operators_address", "server.pipelines_address"),
    "store": ("store.url",),
}
"""By the server's own check: the settings that it knows more of than can be seen from outside."""


@click.command(
    epilog="\b\nExamples:\n  broker doctor                              the way from here to the broker\n"
    "  broker doctor --config /etc/broker.toml    the broker's own host\n\n"
    "Ends with exit code 10 when something must be mended."
)
@click.option("--config", metavar="FILE", type=click.Path(path_type=Path), help="Check a broker's host by its config.")
@formatted
@connection
def doctor(out: Output, config: Path | None, flags: dict[str, str | None], timeout: float) -> int:
    """Find set-up mistakes and name the fix of each: the caller's, or with --config the host's."""
    with ask.waiting("looking") as show:
        checks = []
        for check in _host(config) if config is not None else doctor_caller.checks(flags, timeout):
            show(f"looked at {check.name}")
            checks.append(check)
    out.many("check", [asdict(check) for check in checks], ("name", "status", "detail"), colours=COLOURS)
    bad = sum(check.status == "failed" for check in checks)
    doubtful = sum(check.status == "warning" for check in checks)
    chat(f"{len(checks)} checks: {bad} to mend, {doubtful} to think about.")
    return int(Exit.FINDINGS if bad else Exit.OK)


def _host(config: Path) -> Iterator[Check]:
    """What can be seen from outside, then what only the server's own code knows; its word counts where both speak."""
    server = list(server_checks(config))
    told = {check.name for check in server}
    told |= {setting for check in server for setting in SEEN_BETTER.get(check.name, ())}
    yield from (check for check in doctor_host.checks(config) if check.name not in told)
    yield from server


def server_checks(config: Path) -> Iterator[Check]:
    """The findings of ``python -m broker check``, run as a process of its own."""
    command = [sys.executable, "-P", "-m", "broker", "check", "--config", str(config), "--format", "json"]
    try:
        ran = subprocess.run(  # noqa: S603  our own interpreter and module
            command,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=SERVER_SECONDS,
            check=False,
            env=environment(),
        )
        found = json.loads(ran.stdout[:MAX_ANSWER])
        checks = [_server_check(one) for one in found]
    except subprocess.TimeoutExpired:
        yield failed(
            "server", f"The server's own check did not end in {SERVER_SECONDS} s: is the HSM or database hanging?"
        )
    except (ValueError, TypeError, KeyError, OSError):
        yield failed("server", f'The server\'s own check did not run: try "{sys.executable} -m broker check" by hand.')
    else:
        yield from checks or [failed("server", "The server's own check said nothing.")]


def _server_check(found: dict[str, Any]) -> Check:
    make = failed if found["passed"] is not True else warning if found.get("doubtful") is True else ok
    return make(str(found["name"]), str(found["detail"]))
