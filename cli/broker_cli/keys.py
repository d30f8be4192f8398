"""``broker key``: keys that are generated in the HSM."""

from __future__ import annotations

from typing import Any

import click

from broker_cli import ask, inventory, values, words
from broker_cli.imports import confirm, export, import_, prove, tell_copies, where
from broker_cli.key_use import decrypt, encrypt, public, sign, verify
from broker_cli.nouns import Noun
from broker_cli.operations import in_force, until
from broker_cli.output import Output, formatted
from broker_cli.screen import chat
from broker_cli.wire import Change, Wire, changing, remote, span
from broker_cli.words import record

COLUMNS = (
    "name", "type", "usage", "state", "primary_version", "primary_create_time", "next_rotation", "last_use_time", "at",
    "held_versions", "exportable", "owner",
)  # fmt: skip


@click.group(
    cls=Noun,
    epilog="\b\nExamples:\n"
    "  broker key create payments --type ec-p256 --usage sign --exportable --label team=billing\n"
    "  broker key import payments --target prod\n"
    "  broker key rotate payments --dry-run\n",
)
def key() -> None:
    """Make, use, rotate, import and destroy keys."""


@key.command()
@click.argument("name", type=values.Name("key"))
@click.option("--type", "type_", type=click.Choice(words.KEY_TYPES), required=True, help="What kind of key.")
@click.option("--usage", type=click.Choice(words.KEY_USAGES), required=True, help="Its one purpose.")
@click.option("--exportable", is_flag=True, help="It may leave the HSM, wrapped for a target.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="A label; may be repeated.")
@click.option("--owner", default="", metavar="PRINCIPAL", help="Who answers for it; you, unless said.")
@changing
@formatted
@remote
def create(
    wire: Wire, out: Output, change: Change, name: str, type_: str, labels: tuple[str, ...], **rest: Any
) -> None:
    """Make the key NAME inside the HSM."""
    usage = words.wire_name("KEY_USAGE", rest.pop("usage"))
    with ask.waiting("the HSM makes the key"):
        made = wire.ask(
            "keys",
            "CreateKey",
            name=name,
            type=words.wire_name("KEY_TYPE", type_),
            usage=usage,
            labels=ask.labels(labels),
            **rest,
            **change.fields,
        )
    _changed(out, change, made)


@key.command()
@click.argument("name", type=values.Name("key"))
@formatted
@remote
def show(wire: Wire, out: Output, name: str) -> None:
    """Show the key NAME: its schedule, last use and copies, and what the HSM says of its version in force."""
    found = inventory.entry(wire.ask("keys", "GetKey", name=name, ask_token=True).key)
    shown = {"schedule": inventory.for_people(out, found["schedule"]), "copies": inventory.told(out, found["copies"])}
    out.one("key", {**found, **shown})


@key.command(
    "list",
    epilog="\b\nExamples:\n"
    "  broker key list --overdue\n"
    "  broker key list --label team=billing --target prod --format csv > keys.csv\n",
)
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Only keys with this; may be repeated.")
@click.option("--state", type=click.Choice(words.KEY_STATES), help="Only keys in this state.")
@click.option("--owner", default="", metavar="PRINCIPAL", help="Only keys of operator/alice, say.")
@click.option("--target", type=values.Name("target"), default="", help="Only keys with a copy at this target.")
@click.option("--overdue", is_flag=True, help="Only keys that should have been rotated by now.")
@click.option("--held", is_flag=True, help="Only keys whose schedule rotates nothing until it is set again.")
@click.option("--compromised", is_flag=True, help="Only keys whose version in force is compromised and not replaced.")
@formatted
@remote
def list_(wire: Wire, out: Output, labels: tuple[str, ...], state: str | None, **rest: Any) -> None:
    """List the keys that you may see, with age, next rotation, last use and where their copies are."""
    wanted = {"labels": ask.labels(labels), "state": words.wire_name("KEY_STATE", state), **rest}
    found = [inventory.entry(one) for one in wire.pages("keys", "ListKeys", "keys", **wanted)]
    out.many("key", found, COLUMNS, colours=inventory.COLOURS)
    inventory.tell_compromised(found)


@key.command()
@click.argument("name", type=values.Name("key"))
@formatted
@remote
def versions(wire: Wire, out: Output, name: str) -> None:
    """List the versions of the key NAME."""
    found = [record(one) for one in wire.pages("keys", "ListKeyVersions", "versions", name=name)]
    out.many("version", found, ("version", "state", "phase", "create_time", "sealed", "public_key_sha256"))


_within = click.option(
    "--within",
    type=values.Span(1, 7 * 86_400),
    default="10m",
    show_default=True,
    metavar="TIME",
    help="At most so long.",
)


@key.command()
@click.argument("name", type=values.Name("key"))
@click.option("--here-only", is_flag=True, help="In the HSM alone, at once; the targets keep what they have.")
@click.option(
    "--grace", type=values.Span(0, 366 * 86_400, "h"), metavar="TIME", help="How long the former versions stay; 24h."
)
@click.option("--wait/--no-wait", "waits", default=True, help="Until the new version is in force everywhere; or not.")
@_within
@changing
@formatted
@remote
def rotate(
    wire: Wire,
    out: Output,
    change: Change,
    name: str,
    *,
    here_only: bool,
    grace: int | None,
    waits: bool,
    within: int,
) -> None:
    """Make a new version of the key NAME, bring it to every target where the key is, and put it in force.

    It signs and encrypts once every target has it and has proven it; one that is away is waited for alone. After the
    grace the former versions protect nothing any more and are disabled at the targets; here they still verify and
    decrypt.
    """
    if here_only:
        with ask.waiting("the HSM makes the new version"):
            _changed(out, change, wire.ask("keys", "RotateKey", name=name, **change.fields))
        return
    begun = wire.ask("keys", "RotateKey", name=name, everywhere=True, **span("grace", grace), **change.fields)
    for place in begun.places:
        chat(f"{'It would go' if change.dry_run else 'It goes'} to {place.target} as {place.remote_name}.")
    if waits and not change.dry_run:
        until(wire, begun.operation.name, within, in_force)
        begun.key.CopyFrom(wire.ask("keys", "GetKey", name=name).key)
    _changed(out, change, begun)


@key.command()
@click.argument("name", type=values.Name("key"))
@changing
@formatted
@remote
def prepare(wire: Wire, out: Output, change: Change, name: str) -> None:
    """Make the next version of the key NAME; it can be imported, and nothing else until it is activated."""
    with ask.waiting("the HSM makes the new version"):
        _changed(out, change, wire.ask("keys", "PrepareKeyVersion", name=name, **change.fields))


@key.command()
@click.argument("name", type=values.Name("key"))
@click.option("--version", type=values.Version(least=1), required=True, help="The prepared version.")
@changing
@formatted
@remote
def activate(wire: Wire, out: Output, change: Change, name: str, version: int) -> None:
    """Put a prepared version of the key NAME in force: it signs and encrypts from now on."""
    _changed(out, change, wire.ask("keys", "ActivateKeyVersion", name=name, version=version, **change.fields))


@key.command()
@click.argument("name", type=values.Name("key"))
@click.option("--version", type=values.Version(least=1), required=True, help="A version that is not the primary one.")
@changing
@formatted
@remote
def retire(wire: Wire, out: Output, change: Change, name: str, version: int) -> None:
    """Have a version of the key NAME protect nothing any more; it still verifies and decrypts."""
    _changed(out, change, wire.ask("keys", "RetireKeyVersion", name=name, version=version, **change.fields))


@key.command()
@click.argument("name", type=values.Name("key"))
@click.option("--version", type=values.Version(), default=0, help="The primary one, unless said.")
@click.option("--reason", required=True, metavar="TEXT", help="Why, in one line; kept for good.")
@click.option("--no-replacement", is_flag=True, help="Do not rotate the key; nothing signs or encrypts with it then.")
@click.option("--wait/--no-wait", "waits", default=True, help="Until every target has disabled it; or not.")
@_within
@ask.yes
@changing
@formatted
@remote
def compromise(
    wire: Wire, out: Output, change: Change, name: str, version: int, reason: str, *, sure: bool, **rest: Any
) -> None:
    """Contain a compromised version of the key NAME: it protects nothing from now on, and every target disables it.

    If it is the primary one, its replacement is made and brought to the targets at once.
    """
    what = {"name": name, "version": version, "reason": reason, "replace": not rest["no_replacement"]}
    would = wire.ask("keys", "CompromiseKeyVersion", validate_only=True, **what)
    ask.by_name(
        name,
        f"Version {would.version} signs and encrypts no more, here and at the targets; this cannot be undone.",
        sure=sure,
        dry_run=change.dry_run,
        told=lambda: _tell_contained(would),
    )
    if change.dry_run:
        _changed(out, change, would)
        return
    done = wire.ask("keys", "CompromiseKeyVersion", **what, **change.fields)
    if done.HasField("replacement"):
        chat(f"It was the primary version, so the key is being rotated: broker operation show {done.replacement.name}")
    elif done.no_replacement:
        chat(f"It was the primary version, and nothing replaces it yet. {done.no_replacement}")
    if rest["waits"]:
        until(wire, done.operation.name, rest["within"])
    _changed(out, change, done)


@key.command()
@click.argument("name", type=values.Name("key"))
@formatted
@remote
def history(wire: Wire, out: Output, name: str) -> None:
    """Show how the versions of the key NAME came into their phases: when, by whom, and why."""
    found = [record(one) for one in wire.pages("keys", "ListKeyMoves", "moves", name=name)]
    out.many("move", found, ("version", "phase", "time", "actor", "reason"))


@key.command()
@click.argument("name", type=values.Name("key"))
@changing
@formatted
@remote
def enable(wire: Wire, out: Output, change: Change, name: str) -> None:
    """Let the key NAME be used again."""
    _changed(out, change, wire.ask("keys", "EnableKey", name=name, **change.fields))


@key.command()
@click.argument("name", type=values.Name("key"))
@changing
@formatted
@remote
def disable(wire: Wire, out: Output, change: Change, name: str) -> None:
    """Let nobody use the key NAME through the broker until it is enabled again; copies at targets still work.

    They are listed, so that they can be disabled there.
    """
    tell_copies(wire, name)
    _changed(out, change, wire.ask("keys", "DisableKey", name=name, **change.fields))


@key.command()
@click.argument("name", type=values.Name("key"))
@click.option(
    "--in-days",
    type=values.Span(86_400, 365 * 86_400, "d"),
    metavar="DAYS",
    help="How long it can still be saved; the broker's default, unless said.",
)
@click.option("--here-only", is_flag=True, help="In the HSM alone; copies at targets stay as they are.")
@ask.yes
@changing
@formatted
@remote
def destroy(
    wire: Wire, out: Output, change: Change, name: str, in_days: int | None, *, here_only: bool, sure: bool
) -> None:
    """Schedule the destruction of the key NAME, in all its versions, in the HSM and at every target.

    Its copies are disabled at once and deleted after the delay; "broker key where" shows them until they are gone.
    """
    place = "the HSM" if here_only else "the HSM and the targets"
    ask.by_name(
        name,
        f"The key cannot be used any more, and after the delay it is gone from {place} for good.",
        sure=sure,
        dry_run=change.dry_run,
        told=lambda: tell_copies(wire, name, ends=not here_only),
    )
    what = {**span("delay", in_days), "everywhere": not here_only}
    _changed(out, change, wire.ask("keys", "ScheduleKeyDestruction", name=name, **what, **change.fields))


@key.command("cancel-destroy")
@click.argument("name", type=values.Name("key"))
@changing
@formatted
@remote
def cancel_destroy(wire: Wire, out: Output, change: Change, name: str) -> None:
    """Save the key NAME from its scheduled destruction; it is disabled afterwards, and so are its copies."""
    chat(f'Disabled copies stay so: "broker key import {name} --target TARGET" puts one to use again.')
    _changed(out, change, wire.ask("keys", "CancelKeyDestruction", name=name, **change.fields))


@key.command()
@click.argument("name", type=values.Name("key"))
@click.option(
    "--once-at",
    multiple=True,
    type=values.Name("target"),
    metavar="TARGET",
    help="Not now: each version by itself, once it is in force and proven at this target; may be repeated.",
)
@click.option("--by-hand-only", is_flag=True, help="Seal nothing, and nothing by itself any more.")
@ask.yes
@changing
@formatted
@remote
def seal(
    wire: Wire, out: Output, change: Change, name: str, once_at: tuple[str, ...], *, by_hand_only: bool, sure: bool
) -> None:
    """Take the right to leave the HSM away from every version of the key NAME, for good."""
    what = {"once_at": once_at, "by_hand_only": by_hand_only}
    if not by_hand_only:
        told = "It can never be imported anywhere again; this cannot be undone."
        if once_at:
            told = f"Each version that is at {', '.join(once_at)} can then be imported nowhere else; its next one can."
        ask.by_name(name, told, sure=sure, dry_run=change.dry_run)
    _changed(out, change, wire.ask("keys", "SealKey", name=name, **what, **change.fields))


@key.command()
@click.argument("name", type=values.Name("key"))
@click.argument("settlement", type=click.Choice(words.SETTLEMENTS))
@click.option("--version", type=values.Version(least=1), required=True, help="The held version.")
@ask.yes
@changing
@formatted
@remote
def settle(wire: Wire, out: Output, change: Change, name: str, version: int, settlement: str, *, sure: bool) -> None:
    """Say what becomes of a version of the key NAME that is held since the database was restored.

    A key that is held itself was to be destroyed: "broker key destroy" and "broker key cancel-destroy" settle it.
    """
    if settlement == "discard":
        told = "What the HSM has of this version is destroyed for good; copies at targets stay."
        ask.by_name(name, told, sure=sure, dry_run=change.dry_run, told=lambda: tell_copies(wire, name))
    what: dict[str, Any] = {"version": version, "settlement": words.wire_name("SETTLEMENT", settlement)}
    _changed(out, change, wire.ask("keys", "SettleKeyVersion", name=name, **what, **change.fields))


def _tell_contained(would: Any) -> None:
    for place in would.places:
        chat(f"It is in use at {place.target} as {place.remote_name}, and will be disabled there.")
    if would.no_replacement:
        chat(f"Nothing will replace it. {would.no_replacement}")


def _changed(out: Output, change: Change, response: Any) -> None:
    ask.dry_run_note(dry_run=change.dry_run)
    known = {name: value for name, value in record(response.key).items() if name not in inventory.ONLY_LOOKED_UP}
    out.one("key", {**known, **_operation(response)})


def _operation(response: Any) -> dict[str, str]:
    """The name of the operation that goes on, where there is one."""
    goes_on = "operation" in response.DESCRIPTOR.fields_by_name and response.HasField("operation")
    return {"operation": response.operation.name} if goes_on else {}


for use in (inventory.schedule, public, sign, verify, encrypt, decrypt, import_, export, confirm, prove, where):
    key.add_command(use)
