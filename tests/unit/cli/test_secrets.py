"""CL-01: nothing secret is ever a word of the command line, where every process of the machine can read it."""

from __future__ import annotations

from collections.abc import Iterator

import click
from broker_cli.main import cli

SECRETS = ("pin", "password", "passphrase", "plaintext", "message", "secret", "value", "token", "private", "data")
FILES = ("setting_token_file", "token_file", "token_label")  # names of files and things, not what is in them


def commands(command: click.Command, context: click.Context) -> Iterator[click.Command]:
    if not isinstance(command, click.Group):
        yield command
        return
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from commands(found, click.Context(found, parent=context, info_name=name))


def test_CL_01_no_command_takes_a_secret_as_a_word() -> None:
    every = list(commands(cli, click.Context(cli, info_name="broker")))
    assert len(every) > 40
    taken = {
        f"{command.name} {parameter.name}"
        for command in every
        for parameter in command.params
        if parameter.name not in FILES and any(word in (parameter.name or "") for word in SECRETS)
    }
    assert taken == set()
