"""A noun of the command line: its verbs listed whole, and the right one named for a word that others use for it."""

from __future__ import annotations

import click

WHOLE = 200
"""Characters of a verb's first sentence; the list wraps it instead of cutting it off."""

MEANT = {
    "delete": ("destroy", "remove"),
    "rm": ("destroy", "remove"),
    "remove": ("destroy",),
    "get": ("show",),
    "read": ("get", "show"),
    "write": ("put",),
    "end": ("revoke",),
    "describe": ("show",),
    "new": ("create", "add", "issue"),
    "create": ("add", "put"),
    "add": ("create", "put"),
    "export": ("import",),
    "test": ("check", "verify"),
    "validate": ("check", "verify"),
    "edit": ("set", "update"),
    "set": ("put", "update"),
    "update": ("set", "put", "groups", "repin"),
    "undelete": ("cancel-destroy",),
    "restore": ("cancel-destroy",),
}


class Noun(click.Group):
    """A group of verbs."""

    group_class = type

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs with their first sentence, whole."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.get_short_help_str(WHOLE)) for name, one in commands if one is not None])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but naming the verb that is meant by another tool's word."""
        meant = [verb for verb in MEANT.get(args[0], ()) if verb in self.commands]
        if meant and args[0] not in self.commands and not ctx.resilient_parsing:
            verbs = " or ".join(f"'{verb}'" for verb in meant)
            raise click.exceptions.NoSuchCommand(
                args[0], f"No such command '{args[0]}'. Did you mean {verbs}?", ctx=ctx
            )
        return super().resolve_command(ctx, args)
