"""``broker dev``, ``init``, ``serve`` and ``accept-restore`` are the server's own: this process becomes the server."""

from __future__ import annotations

import os
import sys

import click

from broker_cli.__main__ import environment
from broker_cli.refusal import Refusal


class ServerCommand(click.Command):
    """A command whose every word, --help and -- too, is the server's to read."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the words as they are."""
        ctx.params["options"] = tuple(args)
        return []


def become(command: str, options: tuple[str, ...]) -> None:
    """Replace this process by ``python -m broker COMMAND``; -P keeps a folder named broker nearby from being it."""
    sys.stdout.flush()
    try:
        os.execve(sys.executable, [sys.executable, "-P", "-m", "broker", command, *options], environment())  # noqa: S606
    except OSError as fault:
        raise Refusal("SERVER_NOT_STARTED", f"The server cannot be started: {fault.strerror}.") from None


def _passed_on(name: str, text: str) -> click.Command:
    def command(options: tuple[str, ...]) -> None:
        become(name, options)

    return ServerCommand(name, callback=command, help=text)


dev = _passed_on("dev", "Start a trial broker with everything in a temporary folder. Options go to the server.")
init = _passed_on("init", "Set up a broker for keeps. Options go to the server.")
serve = _passed_on("serve", "Run the broker until a signal. Options go to the server.")
accept_restore = _passed_on("accept-restore", "Go on with a restored database. Options go to the server.")
