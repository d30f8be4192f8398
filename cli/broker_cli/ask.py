"""Questions before what cannot be undone, and a sign of life while something takes its time."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click

from broker_cli.refusal import Exit, Refusal
from broker_cli.screen import chat, plain

yes = click.option("--yes", "sure", is_flag=True, help="Do not ask; for scripts.")


def by_name(name: str, consequence: str, *, sure: bool, dry_run: bool, told: Callable[[], None] | None = None) -> None:
    """Go on only if the person types the name of what will be gone (or said --yes, or nothing will happen).

    ``told`` says more of it first, whether anybody is asked or not.
    """
    if not (sure or dry_run):
        _must_be_interactive()
    if told:
        told()
    if sure or dry_run:
        return
    chat(f"{consequence}\nType its name to go on: {name}")
    if sys.stdin.readline().strip() != name:
        raise Refusal("NOT_CONFIRMED", "The name was not typed; nothing was changed.")


def yes_or_no(question: str, *, sure: bool, told: Callable[[], None] | None = None) -> None:
    """Go on only after a yes; ``told`` says more of it first, whether anybody is asked or not."""
    if not sure:
        _must_be_interactive()
    if told:
        told()
    if sure:
        return
    sys.stderr.write(f"{plain(question)} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise Refusal("NOT_CONFIRMED", "That was no yes; nothing was changed.")


def dry_run_note(*, dry_run: bool) -> None:
    """Say that nothing happened."""
    if dry_run:
        chat("Dry run: the broker would do it; nothing was changed.")


@contextmanager
def waiting(text: str) -> Iterator[Callable[[str], None]]:
    """Show on stderr that work goes on, once it has lasted a second, and only to a terminal that can take it."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb" or os.environ.get("CI"):
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415  slow to load, and only for people
    from rich.status import Status  # noqa: PLC0415

    status = Status(text, console=Console(stderr=True, markup=False))
    timer = threading.Timer(1.0, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda now: status.update(plain(now))
    finally:
        timer.cancel()
        timer.join()
        status.stop()


def _must_be_interactive() -> None:
    if sys.stdin is None or not sys.stdin.isatty():
        raise Refusal(
            "CONFIRMATION_NEEDED", "This needs a yes, and there is nobody to ask here: add --yes.", Exit.USAGE
        )


def moment(text: str, option: str) -> Any:
    """A time such as 2027-01-31T12:00:00Z for the wire."""
    from google.protobuf.timestamp_pb2 import Timestamp  # noqa: PLC0415  slow to load

    try:
        found = datetime.fromisoformat(text)
        zone = found.tzinfo
        found = found.astimezone(UTC) if zone else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # the latter in the first and the last hours that there are
        raise click.BadParameter("Write a time such as 2027-01-31T12:00:00Z.", param_hint=option) from None
    if zone is None:
        chat("The time has no zone; it is taken as UTC.")
    stamp = Timestamp()
    stamp.FromDatetime(found)
    return stamp


def not_empty(_: click.Context, __: click.Parameter, text: str | None) -> str:
    """An option that may be left out, but not be given as nothing: the script's variable was not set."""
    if text == "":
        raise click.BadParameter("It is empty; leave the option out, or give it a value.")
    return text or ""


def labels(pairs: tuple[str, ...], option: str = "--label") -> dict[str, str]:
    """``NAME=VALUE`` options as a mapping."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name in found:
            raise click.BadParameter("Write each one once, as NAME=VALUE.", param_hint=option)
        found[name] = value
    return found
