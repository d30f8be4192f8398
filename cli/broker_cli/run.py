"""``broker run``: a command with secrets in its environment, and nothing left of them when it ends."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import click

from broker_cli import process
from broker_cli.ci import identity
from broker_cli.mask import SHORTEST
from broker_cli.refusal import BySignal, Exit, Refusal
from broker_cli.run_references import Wanted, named, only_field, wanted
from broker_cli.run_session import Job, Renewal, Way, durations, reaching
from broker_cli.screen import chat

if TYPE_CHECKING:
    from broker_cli.run_files import Keeper
    from broker_cli.run_outlets import Outlets
    from broker_cli.run_signals import Signals

NOT_EXECUTABLE, NOT_FOUND = 126, 127
USUAL_TTL = 60
"""Seconds: renewed while the command lives, so this is how long anything outlives a runner that dies."""


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog="\b\nExamples:\n  broker run --secret DB_PASSWORD=broker://team/app/db#password -- ./migrate\n"
    "  broker run --env-file .env.broker -- make deploy\n"
    "  broker run --file KUBECONFIG=broker://team/cluster#kubeconfig -- kubectl get pods\n\n"
    "The exit code is the command's, or the signal that ended it; 126 and 127 when it could not be started.",
)
@click.option(
    "--env-file", "env_files", multiple=True, metavar="FILE", help="Lines NAME=broker://path#field, or plain."
)
@click.option("--secret", "variables", multiple=True, metavar="NAME=REF", help="A variable with the value of REF.")
@click.option("--file", "as_files", multiple=True, metavar="NAME=REF",
              help="A file in memory with the value of REF; the variable holds its path.")  # fmt: skip
@click.option("--keep-identity", is_flag=True, help="Leave COMMAND the variables that the CI gives its identity by.")
@durations(15, USUAL_TTL)
@reaching
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    way: Callable[[], Way],
    env_files: tuple[str, ...],
    variables: tuple[str, ...],
    as_files: tuple[str, ...],
    ttl: int,
    command: tuple[str, ...],
    *,
    keep_identity: bool,
) -> int:
    """Run COMMAND with secrets that are gone when it ends.

    Logs in with the identity that the CI gives this job, fetches everything in one call, renews the session while
    COMMAND runs, masks the values in its output, and ends the session whatever happens. COMMAND itself gets nothing
    that it could log in with.
    """
    asked, place = wanted(env_files, variables, as_files), way()
    path = shutil.which(command[0])
    if path is None:
        there = os.path.lexists(command[0]) and "/" in command[0]
        chat(f"broker: {command[0]} {'cannot be executed' if there else 'is not a command here'}; nothing was fetched.")
        return NOT_EXECUTABLE if there else NOT_FOUND
    # The slow parts come now, when it is known that they are needed.
    from broker_cli.run_files import Keeper  # noqa: PLC0415
    from broker_cli.run_outlets import outlets  # noqa: PLC0415
    from broker_cli.run_signals import Signals, Stopped  # noqa: PLC0415

    given = process.environment()
    around = given if keep_identity else identity.without(given, place.audience)
    try:
        with Signals() as signals, outlets() as ends, Keeper(around, ends.ways) as keeper, Job(way=place) as job:
            with named(asked.asked):
                fetched = job.fetch(asked.references, ttl)
            return _with_child(path, list(command), asked, fetched, Around(around, ends, keeper, job, signals))
    except Stopped as stopped:
        return BySignal(stopped.number)


class Around(NamedTuple):
    """What stands around the command: ``environment`` is what its variables are added to."""

    environment: dict[str, str]
    outlets: Outlets
    keeper: Keeper
    job: Job
    signals: Signals


def _with_child(
    path: str, command: list[str], asked: Wanted, fetched: dict[str, dict[str, bytes]], around: Around
) -> int:
    from broker_cli.run_child import start  # noqa: PLC0415
    from broker_cli.run_files import MemoryFiles  # noqa: PLC0415

    with ExitStack() as stack:
        memory = stack.enter_context(MemoryFiles(around.keeper))
        variables = {name: only_field(fetched[text], text) for name, text in asked.variables.items()}
        contents = {name: only_field(fetched[text], text) for name, text in asked.files.items()}
        check_values(variables)
        warn_of_short(variables | contents)
        paths = {name: str(memory.add(name, value)) for name, value in contents.items()}
        environment: dict[str, str | bytes] = {**around.environment, **asked.plain, **paths, **variables}
        around.keeper.tell("values", [value.hex() for value in (*variables.values(), *contents.values())])
        around.keeper.ready()
        around.signals.hold()
        child = start(path, command, environment, around.outlets, around.keeper)
        around.outlets.given()
        around.outlets.release()
        renewal = Renewal(around.job)
        renewal.start()
        stack.callback(renewal.stop)
        try:
            code = child.wait(around.signals)
        except BaseException:
            child.process.terminate()  # nobody would wait for it
            raise
    return code if code >= 0 else BySignal(-code)


def check_values(variables: Mapping[str, bytes]) -> None:
    """Refuse what no environment can hold."""
    for name, value in variables.items():
        if b"\0" in value:
            raise Refusal(
                "VALUE_NOT_TEXT",
                f"The value for {name} holds a zero byte, which no variable can: use --file.",
                Exit.USAGE,
            )


def warn_of_short(values: Mapping[str, bytes]) -> None:
    """Name the values that are not masked."""
    short = sorted(name for name, value in values.items() if len(value.strip()) < SHORTEST)
    if short:
        chat(f"broker: {', '.join(short)}: shorter than {SHORTEST} bytes, so not masked in the output.")
