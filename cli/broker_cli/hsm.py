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
    probes = found.pop("probes")
    out.one("hsm", found)
    if probes:
        click.echo()
        out.many("probe", probes, ("name", "passed", "detail"))
