"""``broker target``: the places that keys can be imported to."""

from __future__ import annotations

import click

from broker_cli import ask, values
from broker_cli.nouns import Noun
from broker_cli.output import Output, formatted
from broker_cli.refusal import Exit
from broker_cli.screen import chat
from broker_cli.target_kinds import Kinds, place
from broker_cli.wire import Change, Wire, changing, patient, remote
from broker_cli.words import record

COLUMNS = ("name", "place", "kek_id", "kek_thumbprint")


@click.group(
    cls=Noun,
    epilog="\b\nExamples:\n"
    "  broker target add vault prod --address https://vault.example.org:8200 \\\n"
    "      --ca-file vault-ca.pem\n"
    "  broker target add azure-key-vault hsm --vault-url https://payments.managedhsm.azure.net \\\n"
    "      --credential workload-identity --tenant-id GUID --client-id GUID --kek kek --create-kek\n",
)
def target() -> None:
    """Places that keys can be imported to."""


@target.group(cls=Kinds, subcommand_metavar="KIND NAME [OPTIONS]")
def add() -> None:
    """Register a target and pin its key-exchange key; one command a kind."""


@target.command()
@click.argument("name", type=values.Name("target"))
@formatted
@remote
def show(wire: Wire, out: Output, name: str) -> None:
    """Show the target NAME."""
    out.one("target", record(wire.ask("targets", "GetTarget", name=name).target))


@target.command("list")
@formatted
@remote
def list_(wire: Wire, out: Output) -> None:
    """List the targets."""
    found = wire.pages("targets", "ListTargets", "targets")
    if out.format == "table":
        out.many("target", [record(one) | {"place": place(one)} for one in found], COLUMNS)
    else:
        out.many("target", [record(one) for one in found], ())


@target.command(epilog="Ends with exit code 10 when something does not work.")
@click.argument("name", type=values.Name("target"))
@formatted
@remote
@patient
def check(wire: Wire, out: Output, name: str) -> int:
    """Connect to the target NAME now and say what works."""
    with ask.waiting("connecting to the target"):
        found = [record(one) for one in wire.ask("targets", "CheckTarget", name=name).findings]
    out.many("finding", found, ("name", "passed", "detail"))
    return int(Exit.OK if found and all(one["passed"] for one in found) else Exit.FINDINGS)


@target.command()
@click.argument("name", type=values.Name("target"))
@click.option(
    "--thumbprint", required=True, metavar="SHA256", help="Of the new KEK, got from the target's administrator."
)
@click.option("--kek", default="", metavar="ID", help="The versioned id of another KEK there (Azure).")
@changing
@formatted
@remote
@patient
def repin(wire: Wire, out: Output, change: Change, name: str, thumbprint: str, kek: str) -> None:
    """Trust the KEK that the target NAME offers now; it must have the thumbprint given."""
    with ask.waiting("connecting to the target"):
        made = wire.ask(
            "targets", "RepinTarget", name=name, expected_kek_thumbprint=thumbprint, kek=kek, **change.fields
        )
    ask.dry_run_note(dry_run=change.dry_run)
    out.one("target", record(made.target))


@target.command()
@click.argument("name", type=values.Name("target"))
@click.option(
    "--copies-unknown",
    is_flag=True,
    help="It is gone for good: list its copies as unknown from now on, and give its name to no other target.",
)
@ask.yes
@changing
@remote
def remove(wire: Wire, change: Change, name: str, *, copies_unknown: bool, sure: bool) -> None:
    """Forget the target NAME; refused while keys live there."""
    lost = " What copies of keys are there, nobody will find out any more." if copies_unknown else ""
    ask.by_name(name, f"The target and its pin will be forgotten.{lost}", sure=sure, dry_run=change.dry_run)
    wire.ask("targets", "DeleteTarget", name=name, copies_unknown=copies_unknown, **change.fields)
    ask.dry_run_note(dry_run=change.dry_run)
    if not change.dry_run:
        chat(f"The target {name} is forgotten.")
