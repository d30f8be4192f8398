"""``broker approval``: what waits for other people's word."""

from __future__ import annotations

from typing import Any

import click

from broker_cli import ask
from broker_cli.nouns import Noun
from broker_cli.output import Output, formatted
from broker_cli.screen import chat, plain
from broker_cli.wire import Change, Wire, changing, remote
from broker_cli.words import record

COLUMNS = ("id", "state", "says", "approved", "expire_time")
REASON = click.option("--reason", metavar="TEXT", default="", help="One line for those who look at it later.")


@click.group(
    cls=Noun,
    epilog="\b\nExamples:\n"
    "  broker approval list --waiting\n"
    "  broker approval show 3f9a2c71d0e8\n"
    "  broker approval approve 3f9a2c71d0e8 --reason CHG-4711\n"
    "  broker approval reject 3f9a2c71d0e8\n",
)
def approval() -> None:
    """See, approve and reject what waits for other people's word."""


@approval.command("list")
@click.option("--waiting", is_flag=True, help="Only those that can still be approved or used.")
@formatted
@remote
def list_(wire: Wire, out: Output, *, waiting: bool) -> None:
    """List approvals; those that are over for 7 days."""
    found = wire.pages("approvals", "ListApprovals", "approvals", waiting=waiting)
    out.many("approval", [_listed(one) for one in found], COLUMNS)


@approval.command()
@click.argument("identity", metavar="ID")
@formatted
@remote
def show(wire: Wire, out: Output, identity: str) -> None:
    """Show the approval ID: what will happen, who asked, who has approved, and the digest of it all."""
    out.one("approval", _shown(wire.ask("approvals", "GetApproval", id=identity).approval))


@approval.command()
@click.argument("identity", metavar="ID")
@click.option("--digest", metavar="HEX", help="Refuse unless it is about the request with this digest.")
@REASON
@ask.yes
@changing
@formatted
@remote
def approve(
    wire: Wire, out: Output, change: Change, identity: str, digest: str | None, reason: str, *, sure: bool
) -> None:
    """Approve the request that waits under ID, after showing what it is."""
    seen = digest or ""

    def told() -> None:
        nonlocal seen
        found = wire.ask("approvals", "GetApproval", id=identity).approval
        _tell(found)
        seen = seen or found.digest  # what is approved is what was shown

    if not change.dry_run:
        ask.yes_or_no("Approve this?", sure=sure, told=told)
    done = wire.ask("approvals", "Approve", id=identity, digest=seen, reason=reason, **change.fields)
    ask.dry_run_note(dry_run=change.dry_run)
    out.one("approval", _shown(done.approval))


@approval.command()
@click.argument("identity", metavar="ID")
@REASON
@changing
@formatted
@remote
def reject(wire: Wire, out: Output, change: Change, identity: str, reason: str) -> None:
    """Reject the request that waits under ID for good; of your own, that withdraws it."""
    done = wire.ask("approvals", "Reject", id=identity, reason=reason, **change.fields)
    ask.dry_run_note(dry_run=change.dry_run)
    out.one("approval", _shown(done.approval))


def _tell(found: Any) -> None:
    """What will happen; no line of it can pass for another than it is (CL-13)."""
    chat(plain(found.says))
    for name, value in sorted(found.details.items()):
        lines = [plain(line) for line in value.splitlines()]
        chat(f"  {plain(name)}: {lines[0] if len(lines) == 1 else ''}")
        for line in lines if len(lines) > 1 else ():
            chat(f"  | {line}")
    chat(f"  digest: {plain(found.digest)}")


def _listed(found: Any) -> dict[str, Any]:
    entry = record(found)
    del entry["details"]
    return entry | {"approved": f"{len(found.grants)} of {found.needed}"}


def _shown(found: Any) -> dict[str, Any]:
    return record(found) | {"approved": f"{len(found.grants)} of {found.needed}"}
