"""``broker session``: what the jobs' logins gave, and ending it."""

from __future__ import annotations

from typing import Any

import click

from broker_cli import ask
from broker_cli.nouns import Noun
from broker_cli.output import Output, formatted
from broker_cli.refusal import Exit, Refusal
from broker_cli.wire import Change, Wire, changing, remote
from broker_cli.words import record

COLUMNS = ("id", "principal", "trust_rule", "subject", "state", "create_time", "expire_time", "last_time")


@click.group(
    cls=Noun,
    epilog="\b\nExamples:\n"
    "  broker session list --principal pipeline/deploy\n"
    "  broker session revoke --principal pipeline/deploy\n"
    "  broker session revoke --claim 'https://gitlab.com project_id=42'\n",
)
def session() -> None:
    """What the logins of CI jobs gave; everything a job holds ends with its session."""


@session.command("list")
@click.option("--principal", default="", metavar="PRINCIPAL", help='Only of this one, such as "pipeline/deploy".')
@formatted
@remote
def list_(wire: Wire, out: Output, principal: str) -> None:
    """List sessions, also those that ended in the last hour."""
    found = wire.pages("sessions", "ListSessions", "sessions", principal=principal)
    out.many("session", [record(one) for one in found], COLUMNS)


@session.command()
@click.argument("session_id", default="")
@click.option("--principal", default="", metavar="PRINCIPAL", help="All of this one.")
@click.option("--claim", default="", metavar="CLAIM", help='All that fit "ISSUER CLAIM=VALUE".')
@ask.yes
@changing
@formatted
@remote
def revoke(
    wire: Wire,
    out: Output,
    change: Change,
    session_id: str,
    *,
    principal: str,
    claim: str,
    sure: bool,
) -> None:
    """End the session SESSION_ID, or several; every lease of theirs is revoked."""
    which = one_of(session=session_id, principal=principal, claim=claim)
    if not session_id and not change.dry_run:
        ask.yes_or_no(f"End every session of {principal or claim}?", sure=sure)
    done = wire.ask("sessions", "RevokeSessions", **which, **change.fields)
    ask.dry_run_note(dry_run=change.dry_run)
    out.one("revocation", record(done))


def one_of(**which: str) -> dict[str, Any]:
    """The one selection that was made; a usage error for none or several."""
    made = {name: value for name, value in which.items() if value}
    if len(made) != 1:
        names = ", ".join(which)
        raise Refusal("SELECTION_INVALID", f"Say which: exactly one of {names}.", Exit.USAGE)
    return made
