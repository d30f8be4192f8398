"""``broker completion``: the script that makes a shell complete broker's commands."""

from __future__ import annotations

import sys

import click

SHELLS = ("bash", "zsh", "fish")


@click.command(
    epilog="\b\nExamples:\n"
    "  broker completion bash > ~/.local/share/bash-completion/completions/broker\n"
    "  broker completion fish > ~/.config/fish/completions/broker.fish\n"
)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script of SHELL."""
    from click.shell_completion import get_completion_class  # noqa: PLC0415  needed here only

    from broker_cli.main import cli  # noqa: PLC0415  this module is loaded by it

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError("This click cannot complete for that shell.")
    maker = kind(cli, {}, "broker", "_BROKER_COMPLETE")
    # click's own source() would start a bash to ask for its version; the script needs 4.4 and says so itself.
    sys.stdout.write((maker.source_template % maker.source_vars()) + "\n")
