"""How the command ends when it does not end well: one sentence, a reason, an exit code. Never a traceback."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Self

import click

from broker_cli.screen import plain


class Exit(IntEnum):
    """The exit codes; stable, listed in ``broker --help``."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    DENIED = 3
    NOT_LOGGED_IN = 4
    UNAVAILABLE = 5
    NOT_FOUND = 6
    CONFLICT = 7
    FINDINGS = 10


class BySignal(int):
    """The exit code of what a signal ended, 128 and its number, as a shell gives it.

    The entry point ends itself by that signal, so that the process that started us sees what ended the command (a shell
    that runs a script stops at SIGINT for that alone).
    """

    def __new__(cls, number: int) -> Self:
        """Made from the signal's number."""
        return super().__new__(cls, 128 + number)

    @property
    def number(self) -> int:
        """The signal."""
        return self - 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One item of a request that was refused for a reason of its own; ``place`` counts from 0."""

    place: int
    reason: str
    message: str


UNREACHABLE = "BROKER_UNREACHABLE"
"""The reason when nothing answers at the address."""


class Refusal(click.ClickException):
    """One clear sentence (what, why, what to do), a stable UPPER_SNAKE reason and how the process ends."""

    retry_after = 0
    """Seconds after which the broker says that the same request can do better; 0: it does not say."""

    passing = False
    """Whether the same may go well in a moment: something was away, and nothing was refused."""

    items: tuple[Item, ...] = ()
    """The items of the request that were refused, when the broker says so."""

    lines: tuple[str, ...] = ()
    """What is told below the sentence, a line each."""

    def __init__(self, reason: str, message: str, code: Exit = Exit.FAILURE, call_id: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.code = code
        self.call_id = call_id

    def format_message(self) -> str:
        """The sentence with its reason, and the lines below it, fit for a terminal."""
        call = f", call {self.call_id}" if self.call_id else ""
        return "\n  ".join(map(plain, (f"{self.message} [{self.reason}{call}]", *self.lines)))
