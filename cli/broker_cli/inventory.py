"""Keys as entries of the inventory, and ``broker key schedule``: when a key is rotated by itself."""

from __future__ import annotations

from typing import Any

import click

from broker_cli import ask, values
from broker_cli.output import Output, formatted
from broker_cli.screen import chat
from broker_cli.wire import Change, Wire, changing, remote, span
from broker_cli.words import record

HOUR, DAY = 3600, 86_400
LONGEST = 3660 * DAY
COLOURS = {"OVERDUE": "red", "COMPROMISED": "red"}
NAMED = 5
SPANS = ("every", "jitter", "warn", "grace")
ONLY_LOOKED_UP = frozenset({
    "primary_create_time", "schedule", "overdue", "due_soon", "last_user", "last_use_time", "copies", "origin",
    "held_versions", "primary_phase",
})  # fmt: skip
"""What of a key is in the answers of show and list alone: elsewhere it would say that there is none."""


def for_people(out: Output, schedule: dict[str, Any] | None) -> dict[str, Any] | None:
    """A schedule's record; in a table its spans are 90d and 6h, elsewhere seconds."""
    if schedule is None or out.format != "table":
        return schedule
    return {**schedule, **{name: values.said(int(schedule[name])) for name in SPANS if schedule[name]}}


def told(out: Output, copies: list[dict[str, Any]]) -> list[Any]:
    """The records of copies; in a table what a person asks of each."""
    return [_told(one) for one in copies] if out.format == "table" else copies


def _told(copy: dict[str, Any]) -> str:
    since = f" {copy['prove_time']}" if copy["prove_time"] and copy["state"] == "proven" else ""
    why = "".join(f", {one}" for one in (copy["failure"], *copy["drifts"]) if one)
    there = f"version {copy['version']} at {copy['target']} as {copy['remote_name']}"
    return f"{there}: {copy['standing'] or copy['state']} ({copy['state']}{since}{why})"


def entry(key: Any) -> dict[str, Any]:
    """A key's record; ``next_rotation`` and ``at`` say for people what stands in ``schedule`` and ``copies``."""
    found = record(key)
    places = sorted({f"{one['target']} ({one['state']})" for one in found["copies"] if not one["never_sent"]})
    return {**found, "next_rotation": _next(found), "at": places}


def is_compromised(found: dict[str, Any]) -> bool:
    """Whether the version in force is, so that nothing can be protected with the key until another one is."""
    return bool(found["state"] == "enabled" and found["primary_phase"] == "compromised")


def repair(found: list[dict[str, Any]]) -> str:
    """What these keys are, and what mends them."""
    named = ", ".join(one["name"] for one in found[:NAMED])
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    first = found[0]["name"]
    return (
        f"The version in force of {named}{more} is compromised and not replaced: `broker key rotate {first}`, or, if "
        f"its replacement waits, `broker operation list key/{first}` says for what."
    )


def tell_compromised(found: list[dict[str, Any]]) -> None:
    """Say on stderr which of these keys need another version."""
    if some := [one for one in found if is_compromised(one)]:
        chat(repair(some))


def _next(found: dict[str, Any]) -> str:
    """When it is rotated next; OVERDUE stands for a time that has passed, COMPROMISED for now."""
    if is_compromised(found):
        return "COMPROMISED"
    schedule = found["schedule"]
    if schedule is None:
        return ""
    held = " (held)" if schedule["held"] else ""
    held = " (needs approvals)" if schedule["failure"] == "APPROVAL_REQUIRED" else held
    return f"OVERDUE{held}" if found["overdue"] else f"{schedule['next_time']}{held}"


@click.command(
    epilog="\b\nExamples:\n"
    "  broker key schedule payments --every 90d --jitter 6h --warn 14d \\\n"
    "    --blackout 'Mon-Fri 08:00-18:00 Europe/Berlin' --blackout '22:00-06:00'\n"
    "  broker key schedule payments            show what is set\n"
    "  broker key schedule payments --off\n",
)
@click.argument("name", type=values.Name("key"))
@click.option(
    "--every", type=values.Span(HOUR, LONGEST, "d"), metavar="TIME", help="How old a version becomes: 90d, P90D."
)
@click.option("--jitter", type=values.Span(0, LONGEST, "h"), metavar="TIME", help="Up to so much later, by chance.")
@click.option(
    "--blackout", "blackouts", multiple=True, metavar="WINDOW",
    help="When none begins: 'Mon-Fri 08:00-18:00 Europe/Berlin'; UTC without a zone. May be repeated.",
)  # fmt: skip
@click.option(
    "--warn", type=values.Span(0, LONGEST, "d"), metavar="TIME", help="How long before it is told; a tenth, up to 14d."
)
@click.option(
    "--grace", type=values.Span(0, LONGEST, "h"), metavar="TIME", help="How long the former version stays; 24h."
)
@click.option("--off", is_flag=True, help="Rotate it by itself no more.")
@changing
@formatted
@remote
def schedule(
    wire: Wire,
    out: Output,
    change: Change,
    name: str,
    every: int | None,
    blackouts: tuple[str, ...],
    *,
    off: bool,
    **spans: int | None,
) -> None:
    """Have the key NAME rotated by itself, everywhere it is, in your name; without options, show what is set.

    It is due when its version in force is as old as --every says, so one that is that old already is due at once. What
    is set anew replaces what was set. Your permission is asked again each time: when you may not rotate it any more,
    nothing is rotated, and the key is told as overdue.
    """
    told = {field: value for field, value in spans.items() if value is not None}
    if every is None and not off:
        if told or blackouts:
            raise click.UsageError("Say how often (--every 90d); a schedule is set as a whole.")
        _show(out, wire.ask("keys", "GetKey", name=name).key)
        return
    if off and (every is not None or told or blackouts):
        raise click.UsageError("Give --off or a schedule, not both.")
    wanted: dict[str, Any] = {} if off else {"blackouts": blackouts, **span("every", every)}
    for field, value in told.items():
        wanted |= span(field, value)
    made = wire.ask("keys", "SetKeySchedule", name=name, **wanted, **change.fields)
    ask.dry_run_note(dry_run=change.dry_run)
    _show(out, made.key)


def _show(out: Output, key: Any) -> None:
    found = record(key)
    if found["schedule"] is None:
        chat(f"The key {found['name']} is not rotated by itself.")
    shown = for_people(out, found["schedule"]) or dict.fromkeys(("every", "next_time"))
    out.one("schedule", {"key": found["name"], **shown, "overdue": found["overdue"]})
