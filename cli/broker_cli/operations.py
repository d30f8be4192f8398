"""``broker operation``: what reaches outside the broker step by step, and what waits."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from broker_cli import ask, values
from broker_cli.nouns import Noun
from broker_cli.output import Output, formatted
from broker_cli.refusal import Exit, Refusal
from broker_cli.screen import chat
from broker_cli.wire import Change, Wire, changing, remote, span
from broker_cli.words import record

COLUMNS = ("name", "kind", "state", "progress", "place", "failure", "principal", "create_time", "due_time")
A_WAIT = 8
"""Seconds that the broker is asked to wait at a time."""


@click.group(
    cls=Noun,
    epilog="\b\nExamples:\n"
    "  broker operation list --live\n"
    "  broker operation list key/payments\n"
    "  broker operation wait key/payments/3/1 --within 10m\n"
    "  broker operation retry import/payments/2/prod/payments/1\n",
)
def operation() -> None:
    """Watch, retry and abort what reaches outside the broker."""


@operation.command("list")
@click.argument("subject", default="")
@click.option("--live", is_flag=True, help="Only those that are not over.")
@formatted
@remote
def list_(wire: Wire, out: Output, subject: str, *, live: bool) -> None:
    """List operations about SUBJECT (such as key/payments), or all; those that are over for a day."""
    found = wire.pages("operations", "ListOperations", "operations", subject=subject.strip("/"), live=live)
    out.many("operation", [_shown(one) for one in found], COLUMNS)


@operation.command()
@click.argument("name")
@formatted
@remote
def show(wire: Wire, out: Output, name: str) -> None:
    """Show the operation NAME: its steps, whom it waits for, and why."""
    out.one("operation", _shown(wire.ask("operations", "GetOperation", name=name).operation))


@operation.command()
@click.argument("name")
@click.option(
    "--within",
    type=values.Span(1, 7 * 86_400),
    default="1h",
    show_default=True,
    metavar="TIME",
    help="At most so long.",
)
@formatted
@remote
def wait(wire: Wire, out: Output, name: str, within: int) -> None:
    """Wait until the operation NAME is over; exit code 1 if it came to nothing, 5 if it still runs then."""
    out.one("operation", _shown(until(wire, name, within)))


@operation.command()
@click.argument("name")
@changing
@formatted
@remote
def retry(wire: Wire, out: Output, change: Change, name: str) -> None:
    """Have the operation NAME, which waits after a failure, tried again at once."""
    done = wire.ask("operations", "RetryOperation", name=name, **change.fields)
    ask.dry_run_note(dry_run=change.dry_run)
    out.one("operation", _shown(done.operation))


@operation.command()
@click.argument("name")
@ask.yes
@changing
@formatted
@remote
def abort(wire: Wire, out: Output, change: Change, name: str, *, sure: bool) -> None:
    """Give the operation NAME up; what was done of it is undone in the background."""
    if not change.dry_run:
        ask.yes_or_no(f"Give up {name}, and have undone what was done of it?", sure=sure)
    done = wire.ask("operations", "AbortOperation", name=name, **change.fields)
    ask.dry_run_note(dry_run=change.dry_run)
    out.one("operation", _shown(done.operation))


def until(wire: Wire, name: str, seconds: int, enough: Callable[[Any], bool] = lambda _: False) -> Any:
    """The operation once it is done, or has come far ``enough``, each step told as it is done.

    Refusal ``OPERATION_UNDONE`` when it came to nothing, ``OPERATION_RUNNING`` when the time is over before.
    """
    ends_at, told = time.monotonic() + seconds, Told(name)
    with ask.waiting(f"{name} is under way"):
        while True:
            found = wire.ask("operations", "GetOperation", name=name).operation
            told.about(found)
            if found.done or enough(found):
                return _sound(found)
            left = int(ends_at - time.monotonic())
            if left <= 0:
                raise Refusal(
                    "OPERATION_RUNNING",
                    f"{name} is not over yet; the broker goes on with it. `broker operation show {name}` says how far "
                    "it has come.",
                    Exit.UNAVAILABLE,
                )
            wire.ask("operations", "WaitOperation", name=name, **span("timeout", max(1, min(A_WAIT, left))))


def in_force(found: Any) -> bool:
    """Whether a rotation has put its version in force."""
    return "activate" in list(found.steps)[: found.steps_done]


class Told:
    """What was told of an operation already: steps that are done, and what it waits for."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._steps = 0
        self._failure = ""

    def about(self, found: Any) -> None:
        """Tell what is new: in words to a terminal, elsewhere one JSON line for each."""
        for step in list(found.steps)[self._steps : found.steps_done]:
            _tell(f"{self._name}: {step} is done.", operation=self._name, step=step, state="done")
        self._steps = max(self._steps, found.steps_done)
        if found.failure and found.failure != self._failure and not found.done:
            place = found.place or "its turn"
            sentence = f"{self._name} waits for {place} ({found.failure}); it is tried again by itself."
            _tell(sentence, operation=self._name, state="waits", place=place, reason=found.failure)
        self._failure = found.failure


def _tell(sentence: str, **facts: str) -> None:
    chat(sentence if sys.stderr.isatty() else json.dumps(facts))


def _sound(found: Any) -> Any:
    if found.done and _shown(found)["state"] != "done":
        raise Refusal(
            "OPERATION_UNDONE",
            f"{found.name} came to nothing ({found.failure}), and what was done of it is undone; see docs/errors.md "
            "for the reason, mend it, and begin anew.",
        )
    return found


def _shown(found: Any) -> dict[str, Any]:
    entry = record(found)
    return {**entry, "progress": f"{entry['steps_done']}/{len(entry['steps'])}"}
