"""``broker key import|prove|where``: a key at its targets, and the proof that it is the same one."""

from __future__ import annotations

from typing import Any

import click

from broker_cli import ask
from broker_cli.output import Output, formatted
from broker_cli.refusal import Exit, Refusal
from broker_cli.wire import Change, Wire, changing, remote
from broker_cli.words import record

COLUMNS = ("key", "version", "target", "remote_name", "remote_version", "state", "prove_time", "failure")

_target = click.option("--target", required=True, metavar="TARGET", help="The target's name.")
_version = click.option(
    "--version", type=click.IntRange(min=0), default=0, help="A version; the primary one, unless said."
)


@click.command("import", epilog="Repeating an import settles it; the same version is never uploaded twice.")
@click.argument("name")
@_target
@_version
@click.option("--remote-name", default="", metavar="NAME", help="Its name at the target; the same, unless said.")
@changing
@formatted
@remote
def import_(wire: Wire, out: Output, change: Change, name: str, **where_to: Any) -> None:
    """Import the key NAME to a target, wrapped in the HSM, and prove it there."""
    with ask.waiting("wrapping, uploading, proving"):
        done = wire.ask("imports", "ImportKey", name=name, **where_to, **change.fields)
    ask.dry_run_note(dry_run=change.dry_run)
    _told(out, done)


@click.command()
@click.argument("name")
@_target
@_version
@formatted
@remote
def prove(wire: Wire, out: Output, name: str, **at: Any) -> None:
    """Prove again that a target holds the key NAME and can use it."""
    with ask.waiting("proving"):
        done = wire.ask("imports", "ProveImport", name=name, **at)
    _told(out, done)


@click.command()
@click.argument("name", default="")
@click.option("--target", default="", metavar="TARGET", help="Only at this target.")
@formatted
@remote
def where(wire: Wire, out: Output, name: str, target: str) -> None:
    """List where the key NAME, or every key, lives outside the HSM."""
    found = wire.pages("imports", "ListImports", "imports", name=name, target=target)
    out.many("import", [record(one) for one in found], COLUMNS)


def _told(out: Output, response: Any) -> None:
    entry = record(getattr(response, "import"))
    out.one("import", entry)
    if entry["state"] == "failed":
        raise Refusal(entry["failure"] or "IMPORT_FAILED", "The key is not proven at the target.", Exit.FAILURE)
