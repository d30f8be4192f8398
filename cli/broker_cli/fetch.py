"""``broker fetch``: values for what cannot be started by ``broker run``; asked for by name, never shown by accident."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import click

from broker_cli import reserved, run_references
from broker_cli.dotenv import NAME, SCHEME
from broker_cli.output import check_target
from broker_cli.refusal import BySignal, Exit, Refusal
from broker_cli.run_references import all_of, check_count, reference
from broker_cli.run_session import Job, Way, durations, reaching
from broker_cli.screen import chat

FORMATS = ("env", "json", "dotenv", "docker", "github", "azure", "file")
REFUSED = ("gitlab",)
"""Formats that are looked for and have no safe form; told why."""

USUAL_TTL = 300


@click.command(
    epilog="\b\nExamples:\n  broker fetch --format github DB_PASSWORD=broker://team/app/db#password\n"
    '  eval "$(broker fetch --format env broker://team/app/db)"\n'
    "  broker fetch --format file --out secrets TLS_KEY=broker://team/app/tls#key\n\n"
    "REF is broker://path#field, or broker://path for all its fields, with NAME= before it to name the result; "
    "unless named it is called by the last part of the path and the field: DB_PASSWORD. "
    "What programs obey (LD_PRELOAD, GIT_…) is only set where it is named.",
)
@click.option(
    "--format", "format_", type=click.Choice([*FORMATS, *REFUSED]), required=True, help="How the values are written."
)
@click.option("--out", "target", metavar="DIR", help="With --format file: a new private folder, a file a value.")
@click.option("--keep", is_flag=True, help="Let the session run out by itself, and what hangs on it with it.")
@click.option("--reveal", is_flag=True, help="Show the values on this terminal.")
@durations(15, USUAL_TTL)
@reaching
@click.argument("references", nargs=-1, required=True, metavar="REF...")
def fetch(
    way: Callable[[], Way],
    references: tuple[str, ...],
    format_: str,
    target: str | None,
    ttl: int,
    *,
    keep: bool,
    reveal: bool,
) -> int:
    """Fetch secrets where run does not fit. The session ends at once, unless it is kept."""
    from broker_cli import fetch_formats  # noqa: PLC0415
    from broker_cli.run_signals import Signals, Stopped  # noqa: PLC0415

    asked, names = wanted(references)
    fetch_formats.check_place(format_, os.environ)
    check_way_out(format_, target, reveal=reveal)
    place = None if format_ != "github" else fetch_formats.github_file(os.environ)
    try:
        with Signals(), Job(way=way(), keep=keep) as job:
            with run_references.named(names):
                fetched = job.fetch(list(names), ttl)
            values = collected(asked, fetched)
            if format_ == "file":
                fetch_formats.write_folder(Path(str(target)), values)
            elif place is not None:
                fetch_formats.write_github(values, place)
            else:
                sys.stdout.write(fetch_formats.TEXTS[format_](values))
                sys.stdout.flush()
            if keep:
                chat(f"broker: session {job.id} lives until {job.ends:%Y-%m-%d %H:%M:%S} UTC.")
    except Stopped as stopped:
        return BySignal(stopped.number)
    return 0


def wanted(arguments: Iterable[str]) -> tuple[list[tuple[str, str]], dict[str, list[str]]]:
    """What is asked for as (name, reference), and the names of each reference; what is no such thing is refused."""
    asked = all_of([partial(named, one) for one in arguments])
    names: dict[str, list[str]] = {}
    for name, text in asked:
        names.setdefault(text, []).append(name)
    check_count(list(names))
    for name, text in asked:  # what is known before a secret has said which fields it has
        if "#" in text:
            called(name, text, text.partition("#")[2])
    return asked, names


def named(argument: str) -> tuple[str, str]:
    """The name that was given, or "", and the reference."""
    if argument.startswith(SCHEME):
        return "", reference(argument, "REF", whole=True)
    name, equals, text = argument.partition("=")
    if not equals or not NAME.fullmatch(name):
        raise Refusal("NAME_INVALID", f"Write each REF as {SCHEME}path#field or NAME={SCHEME}path#field.", Exit.USAGE)
    return name, reference(text, name, whole=True)


def collected(asked: list[tuple[str, str]], fetched: Mapping[str, Mapping[str, bytes]]) -> dict[str, bytes]:
    """The values by name; two that would have the same name are refused."""
    found: dict[str, bytes] = {}
    for name, text in asked:
        for field, value in fetched[text].items():
            name_ = called(name, text, field)
            if name_ in found:
                raise Refusal("NAME_TWICE", f"Two values would be called {name_}; name them with NAME=.", Exit.USAGE)
            found[name_] = value
    return found


def called(name: str, text: str, field: str) -> str:
    """The name of a field's value: as it was given, or else made up, which no program may obey (``reserved``)."""
    if name and "#" in text:
        return name
    made_up = re.sub("[^A-Z0-9_]", "_", f"{name or _last(text)}_{field}".upper())
    reserved.check(made_up, f"{text.partition('#')[0]}#{field}")
    return made_up


def check_way_out(format_: str, target: str | None, *, reveal: bool) -> None:
    """Refuse before anything is fetched what could not be written, or would be seen."""
    if (format_ == "file") != (target is not None):
        raise Refusal("OUT_MISSING", "--format file and --out DIR go together.", Exit.USAGE)
    check_target(target)
    if target is None and sys.stdout.isatty() and not reveal:
        raise Refusal(
            "WOULD_BE_SHOWN",
            "Secrets are not shown on a terminal unless asked: use a pipe, --format file, or add --reveal.",
            Exit.USAGE,
        )


def _last(text: str) -> str:
    return text.partition("#")[0].partition("@")[0].rpartition("/")[2]
