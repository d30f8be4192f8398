"""``broker authority``: the keys of the broker's own, their age and their end; rotated while the broker serves."""

from __future__ import annotations

import sys
from typing import Any

import click

from broker_cli import ask, values
from broker_cli.nouns import Noun
from broker_cli.operations import until
from broker_cli.output import Output, formatted
from broker_cli.screen import chat
from broker_cli.wire import Change, Wire, changing, remote
from broker_cli.words import record

NAMES = ("audit", "operator-ca", "server-ca", "page")
COLUMNS = ("name", "version", "state", "create_time", "active_time", "overlap_end_time", "expire_time", "thumbprint")
TAKEN = {"active", "next", "former"}
LOST = (
    "Certificates that the former operator CA has signed are refused from then on, yours too unless you have run "
    "`broker operator renew` since the rotation. "
)


@click.group(
    cls=Noun,
    epilog="\b\nExamples:\n"
    "  broker authority list\n"
    "  broker authority rotate audit\n"
    "  broker authority rotate server-ca && broker authority trust > ca.pem\n",
)
def authority() -> None:
    """The keys of the broker's own: the audit key, both CAs, the page key."""


@authority.command("list")
@formatted
@remote
def list_(wire: Wire, out: Output) -> None:
    """List every version of each, with its age and its end."""
    found = wire.ask("authorities", "ListAuthorities").authorities
    out.many("authority", [record(one) for one in found], COLUMNS)


@authority.command()
@click.argument("name", type=click.Choice(NAMES))
@click.option("--wait/--no-wait", "waits", default=True, help="Until the new version is in force; or not.")
@click.option(
    "--within",
    type=values.Span(1, 86_400),
    default="10m",
    show_default=True,
    metavar="TIME",
    help="Wait at most so long.",
)
@ask.yes
@changing
@formatted
@remote
def rotate(wire: Wire, out: Output, change: Change, name: str, *, sure: bool, waits: bool, within: int) -> None:
    """Make the next version of NAME; it is in force once every process of the broker takes it.

    What the former one has made is taken for a while: operators' certificates for 7 days, page tokens for an hour.
    Then it is destroyed. Clients that trust the former server CA go on to the next one by themselves until that CA
    ends.
    """
    if not change.dry_run:
        ask.yes_or_no(f"Make the next version of the broker's key {name}?", sure=sure)
    with ask.waiting("the next version is made"):
        made = wire.ask("authorities", "RotateAuthority", name=name, **change.fields)
    if waits and not change.dry_run:
        until(wire, made.operation.name, within)
    ask.dry_run_note(dry_run=change.dry_run)
    if name == "server-ca" and not change.dry_run:
        chat("Give clients the new CA file: `broker authority trust`; `broker operator renew` puts it into a profile.")
    out.one("authority", {"name": name, "version": made.version, "operation": made.operation.name})


@authority.command()
@click.argument("name", type=click.Choice(NAMES))
@ask.yes
@changing
@formatted
@remote
def retire(wire: Wire, out: Output, change: Change, name: str, *, sure: bool) -> None:
    """End the overlap of NAME now: nothing that a former version has made is taken any more, and it is destroyed."""
    lost = LOST if name == "operator-ca" else ""
    if not change.dry_run:

        def told() -> None:
            _tell_locked_out(wire.ask("authorities", "RetireAuthority", name=name, validate_only=True), "would be")

        ask.yes_or_no(f"{lost}End the overlap of {name} now?", sure=sure, told=None if sure or not lost else told)
    ended = wire.ask("authorities", "RetireAuthority", name=name, **change.fields)
    ask.dry_run_note(dry_run=change.dry_run)
    _tell_locked_out(ended, "would be" if change.dry_run else "are")
    out.one("authority", {"name": name} | record(ended))


def _tell_locked_out(ended: Any, are: str) -> None:
    """Say who needs another certificate."""
    if ended.locked_out_count:
        more = ended.locked_out_count - len(ended.locked_out)
        named = ", ".join(ended.locked_out) + (f" and {more} more" if more else "")
        chat(
            f"{ended.locked_out_count} operators {are} locked out, since no certificate of theirs is known to be of "
            f"the CA in force: {named}. `broker operator renew` by each of them before, or `operator issue` after."
        )


@authority.command()
@formatted
@remote
def trust(wire: Wire, out: Output) -> None:
    """Print the CAs to trust as the broker's server, PEM: what belongs into ca.pem, and into a pipeline's CA file."""
    pem = trusted(wire.ask("authorities", "ListAuthorities").authorities)
    if out.format == "table":
        sys.stdout.write(pem)
    else:
        out.one("authority", {"server_ca_pem": pem})


def trusted(found: Any) -> str:
    """The one in force first, then those that come and those that were."""
    cas = [one for one in map(record, found) if one["name"] == "server-ca" and one["state"] in TAKEN]
    cas.sort(key=lambda one: (one["state"] != "active", -one["version"]))
    return "".join(one["certificate_pem"] for one in cas)
