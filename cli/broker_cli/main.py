"""The command ``broker``: its nouns, loaded when they are used, and the one place where failures become exit codes."""

from __future__ import annotations

import errno
import importlib
import os
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO

import click

from broker_cli.refusal import BySignal

# command: (module, attribute, line of help). Help and completion of the top level import none of the modules.
COMMANDS = {
    "run": ("run", "run", "Run a command with secrets that are gone when it ends."),
    "fetch": ("fetch", "fetch", "Fetch secrets where run does not fit."),
    "key": ("keys", "key", "Make, use, rotate, import and destroy keys."),
    "secret": ("secrets", "secret", "Write, find, version and destroy static secrets."),
    "target": ("targets", "target", "Places that keys can be imported to."),
    "drift": ("drift", "drift", "Where keys live: what is not as the record says, and its repair."),
    "operation": ("operations", "operation", "Watch, retry and abort what reaches outside the broker."),
    "operator": ("operators", "operator", "The people who may call, and their certificates."),
    "policy": ("policies", "policy", "Who may do what."),
    "approval": ("approvals", "approval", "What waits for other people's word."),
    "trust": ("trust", "trust", "Which CI identity becomes which pipeline."),
    "session": ("sessions", "session", "What the logins of CI jobs gave; end it."),
    "lease": ("leases", "lease", "What has been handed out; take it back."),
    "audit": ("audit", "audit", "Verify and read the audit; sign its heads."),
    "authority": ("authorities", "authority", "The broker's own keys: list, rotate, retire, trust."),
    "hsm": ("hsm", "hsm", "What the HSM is, and what its probe found."),
    "status": ("status", "status", "Does the broker answer, and whom does it take you for?"),
    "doctor": ("doctor", "doctor", "Find set-up mistakes and name the fix of each."),
    "dev": ("server", "dev", "Start a trial broker with everything, in seconds."),
    "init": ("server", "init", "Set up a broker for keeps."),
    "serve": ("server", "serve", "Run the broker."),
    "accept-restore": ("server", "accept_restore", "Go on with a database from a backup."),
    "completion": ("completion", "completion", "Print the completion script of a shell."),
}

OUTPUT_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""What a write to standard output can meet; files are refused where they are used."""

EPILOG = """\b
Examples:
  broker dev
  broker key create payments --type ec-p256 --usage sign --exportable
  broker key import payments --target prod
  broker audit verify /srv/broker/journal --public-key audit.pem

\b
Exit codes: 0 ok, 1 failure, 2 usage, 3 denied, 4 not logged in, 5 unavailable (try again),
6 not found, 7 conflict, 10 findings.
"""


class Nouns(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The nouns in the order of the table."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one noun."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(f"broker_cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the nouns without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but suggesting names that are not imported yet, and the noun of a verb that stands alone."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            whole = " or ".join(f"'{one}'" for one in self._whole(ctx, args[0]))
            message = f"No such command '{args[0]}'. Did you mean {whole}?" if whole else None
            near = None if whole else list(COMMANDS)
            raise click.exceptions.NoSuchCommand(args[0], message, possibilities=near, ctx=ctx)
        return super().resolve_command(ctx, args)

    def _whole(self, ctx: click.Context, word: str) -> list[str]:
        """The commands that a word which is no noun can be a part of."""
        if word in {"help", "version"}:
            return [f"broker --{word}"]
        nouns = {noun: self.get_command(ctx, noun) for noun in COMMANDS}
        return [
            f"broker {noun} {word}"
            for noun, command in nouns.items()
            if isinstance(command, click.Group) and word in command.commands
        ]


@click.group(cls=Nouns, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hsm-broker", prog_name="broker")
def cli() -> None:
    """Keys generated in the HSM, proven where they are imported."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command and end the process; whatever happens, nobody is shown a traceback."""
    code = run(arguments)
    try:
        sys.stderr.flush()
    except OSError:  # a full disk: Python would try once more at its end, and end with a code of its own
        _silence(sys.stderr)
    if isinstance(code, BySignal):
        _end_by(code.number)
    sys.exit(code)


def _end_by(number: int) -> None:
    """End by a signal, without a core dump; process 1 and a process that blocks it go on to exit with a code."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def run(arguments: list[str] | None = None) -> int:  # noqa: C901, PLR0911  one branch and return a kind of end
    """Run the command and return its exit code."""
    if sys.stderr is None:  # closed by the process that started us
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  for the life of the process
    if sys.stdout is None and (arguments or sys.argv[1:])[:1] == ["run"]:
        sys.stdout = sys.stderr  # nothing of ours goes there, and its command starts without it
    if sys.stdout is None:
        sys.stderr.write("broker: Standard output is closed, and the result was to go there. [OUTPUT_CLOSED]\n")
        return 1
    try:
        ended: Any = cli.main(args=arguments, prog_name="broker", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as refused:
        return _refused(refused)
    except (click.Abort, KeyboardInterrupt):
        sys.stderr.write("broker: interrupted\n")
        return 130
    except BrokenPipeError:
        return _pipe_closed()
    except SystemExit as ended_by_click:  # after a completion, or because its own output met a closed pipe
        return int(ended_by_click.code or 0) if "_BROKER_COMPLETE" in os.environ else _pipe_closed()
    except OSError as fault:
        if fault.errno not in OUTPUT_FAULTS:
            return _unexpected(fault)
        _silence(sys.stdout)
        sys.stderr.write(f"broker: The result cannot be written: {fault.strerror}. [OUTPUT_FAILED]\n")
        return 1
    except Exception as fault:  # noqa: BLE001  the last resort: no traceback, no text that could quote an input
        return _unexpected(fault)
    return ended if isinstance(ended, int) else 0


def _refused(refused: click.ClickException) -> int:
    try:
        if isinstance(refused, click.UsageError):
            refused.show()
        else:
            sys.stderr.write(f"broker: {refused.format_message()}\n")
    except BrokenPipeError:
        return _pipe_closed()
    return int(getattr(refused, "code", refused.exit_code))


def _pipe_closed() -> int:
    """The reader went away: say nothing."""
    _silence(sys.stdout)
    return 141


def _silence(stream: TextIO) -> None:
    """Let Python's flush at its end go nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())


def _unexpected(fault: Exception) -> int:
    sys.stderr.write(f"broker: unexpected fault ({type(fault).__name__}); this is a bug. BROKER_DEBUG=1 shows where.\n")
    if os.environ.get("BROKER_DEBUG") == "1":
        for frame in traceback.extract_tb(fault.__traceback__):  # places only: the text of an error can hold a value
            sys.stderr.write(f"  {frame.filename}:{frame.lineno} in {frame.name}\n")
    return 1
