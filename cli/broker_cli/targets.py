"""``broker target``: the places that keys can be imported to."""

from __future__ import annotations

from typing import Any

import click

from broker_cli import ask, certificates, values
from broker_cli.nouns import Noun
from broker_cli.output import Output, formatted
from broker_cli.refusal import Exit
from broker_cli.screen import chat
from broker_cli.wire import Change, Wire, changing, patient, remote, remote_by_profile
from broker_cli.words import record

COLUMNS = ("name", "place", "kek_id", "kek_thumbprint")
CREDENTIALS = ("workload-identity", "managed-identity", "client-certificate", "client-secret", "token-file")


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


@target.group(subcommand_metavar="KIND NAME [OPTIONS]")
def add() -> None:
    """Register a target and pin its key-exchange key; one command a kind."""


@add.command()
@click.argument("name", type=values.Name("target"))
@click.option("--address", "vault_address", required=True, metavar="URL", help="https://HOST:PORT of Vault or OpenBao.")
@click.option("--mount", default="transit", show_default=True, help="Where the transit engine is mounted.")
@click.option("--ca-file", "vault_ca_file", required=True, metavar="FILE", help="CA of that server, PEM; read here.")
@click.option(
    "--token-file", default="", metavar="FILE", help="In the broker's credentials/HOST:PORT; NAME, unless said."
)
@click.option("--namespace", default="", help="Namespace, if any.")
@click.option(
    "--thumbprint",
    callback=ask.not_empty,
    metavar="SHA256",
    help="The KEK's, got by another way; else what is found is pinned.",
)
@changing
@formatted
@remote_by_profile
@patient
def vault(wire: Wire, out: Output, change: Change, name: str, thumbprint: str, **settings: Any) -> None:
    """Register the transit engine of a Vault or OpenBao server as NAME.

    The broker's own address and CA come from the profile or the environment here; --address and --ca-file are the
    target's.
    """
    settings["token_file"] = settings["token_file"] or name
    if "/" in settings["token_file"]:
        raise click.BadParameter("Name a file in the broker's credentials folder; no path.", param_hint="--token-file")
    ca = certificates.certificates(settings.pop("vault_ca_file"), "CA file")
    described = {"address": settings.pop("vault_address"), "ca_pem": ca, **settings}
    _add(wire, out, change, name=name, vault=described, expected_kek_thumbprint=thumbprint)


@add.command("azure-key-vault")
@click.argument("name", type=values.Name("target"))
@click.option(
    "--vault-url",
    required=True,
    metavar="URL",
    help="https://NAME.vault.azure.net or https://NAME.managedhsm.azure.net",
)
@click.option("--credential", type=click.Choice(CREDENTIALS), required=True, help="How the broker logs in there.")
@click.option(
    "--kek", required=True, metavar="ID", help="Its versioned id, https://HOST/keys/NAME/VERSION; a name to make one."
)
@click.option("--create-kek", is_flag=True, help="Make the KEK there, for importing only.")
@click.option("--tenant-id", default="", metavar="GUID", help="Of the application.")
@click.option("--client-id", default="", metavar="GUID", help="Of the application, or of the managed identity.")
@click.option(
    "--file", default="", metavar="NAME", help="A file in the broker's credentials/HOST:PORT, by name, if it takes one."
)
@click.option(
    "--thumbprint",
    callback=ask.not_empty,
    metavar="SHA256",
    help="The KEK's, got by another way; else what is found is pinned.",
)
@changing
@formatted
@remote
@patient
def azure_key_vault(
    wire: Wire, out: Output, change: Change, name: str, thumbprint: str, *, create_kek: bool, **settings: Any
) -> None:
    """Register an Azure Key Vault (Premium) or a Managed HSM as NAME."""
    if "/" in settings["file"]:
        raise click.BadParameter("Name a file in the broker's credentials folder; no path.", param_hint="--file")
    if create_kek == ("/" in settings["kek"]):
        raise click.BadParameter(
            "Give the KEK's versioned id, or with --create-kek the bare name it is to have.", param_hint="--kek"
        )
    _add(
        wire,
        out,
        change,
        name=name,
        azure_key_vault=settings,
        expected_kek_thumbprint=thumbprint,
        create_kek=create_kek,
    )


def _add(wire: Wire, out: Output, change: Change, **asked: Any) -> None:
    with ask.waiting("connecting to the target"):
        made = wire.ask("targets", "CreateTarget", **asked, **change.fields)
    ask.dry_run_note(dry_run=change.dry_run)
    if not (asked["expected_kek_thumbprint"] or asked.get("create_kek") or change.dry_run):
        chat("The KEK was pinned as it was found; compare its thumbprint with what the target's administrator says.")
    out.one("target", record(made.target))


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
        out.many("target", [record(one) | {"place": _place(one)} for one in found], COLUMNS)
    else:
        out.many("target", [record(one) for one in found], ())


def _place(target: Any) -> str:
    vault = target.vault
    return str(target.azure_key_vault.vault_url or f"{vault.address}/v1/{vault.mount}")


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
