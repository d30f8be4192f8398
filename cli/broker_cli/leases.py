"""``broker lease``: what has been handed out, and taking it back."""

from __future__ import annotations

import click

from broker_cli import ask
from broker_cli.nouns import Noun
from broker_cli.output import Output, formatted
from broker_cli.sessions import one_of
from broker_cli.wire import Change, Wire, changing, remote
from broker_cli.words import record

COLUMNS = ("id", "session", "principal", "resource", "version", "state", "create_time", "expire_time")


@click.group(
    cls=Noun,
    epilog="\b\nExamples:\n  broker lease list --principal pipeline/deploy\n  broker lease revoke --prefix team/app\n",
)
def lease() -> None:
    """What has been handed out, to whom, until when."""


@lease.command("list")
@click.option("--principal", default="", metavar="PRINCIPAL", help='Only of this one, such as "pipeline/deploy".')
@click.option("--session", default="", metavar="SESSION", help="Only under this session.")
@formatted
@remote
def list_(wire: Wire, out: Output, principal: str, session: str) -> None:
    """List leases, also those that ended in the last hour."""
    found = wire.pages("leases", "ListLeases", "leases", principal=principal, session=session)
    out.many("lease", [record(one) for one in found], COLUMNS)


@lease.command()
@click.argument("lease_id", default="")
@click.option("--principal", default="", metavar="PRINCIPAL", help="All of this one.")
@click.option("--prefix", default="", metavar="NAME", help="All of this secret and of those below it.")
@ask.yes
@changing
@formatted
@remote
def revoke(
    wire: Wire,
    out: Output,
    change: Change,
    lease_id: str,
    *,
    principal: str,
    prefix: str,
    sure: bool,
) -> None:
    """Revoke the lease LEASE_ID, or several.

    A static secret that was handed out stays known to the job: put a new version of it as well.
    """
    which = one_of(lease=lease_id, principal=principal, prefix=prefix)
    if not lease_id and not change.dry_run:
        ask.yes_or_no(f"Revoke every lease of {principal or prefix}?", sure=sure)
    done = wire.ask("leases", "RevokeLeases", **which, **change.fields)
    ask.dry_run_note(dry_run=change.dry_run)
    out.one("revocation", record(done))
