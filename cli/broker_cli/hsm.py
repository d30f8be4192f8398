"""``broker hsm``: the token behind the broker."""

from __future__ import annotations

import click

from broker_cli.output import Output, formatted
from broker_cli.wire import Wire, remote
from broker_cli.words import record


@click.command()
@formatted
@remote
def hsm(wire: Wire, out: Output) -> None:
    """Show what the token is, and what the start-up probe found that it can really do."""
    found = record(wire.ask("hsm", "GetHsm"))
    if out.format != "table":
        out.one("hsm", found)
        return
    lists = {"feature": found.pop("features", []), "probe": found.pop("probes")}
    out.one("hsm", found)
    for what, rows in lists.items():
        if rows:
            click.echo()
            out.many(what, rows, ("name", "passed", "detail"))
