"""``broker key import|export|confirm|prove|where``: a key at its targets, and the proof that it is the same one."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from pathlib import Path
from typing import Any

import click

from broker_cli import ask, certificates, files, values
from broker_cli.output import Output, check_target, formatted
from broker_cli.refusal import Exit, Refusal
from broker_cli.screen import chat
from broker_cli.wire import Change, Wire, changing, patient, remote
from broker_cli.words import record

COLUMNS = ("key", "version", "target", "remote_name", "remote_version", "standing", "drifts", "prove_time", "failure")

_target = click.option(
    "--target", required=True, type=values.Name("target"), metavar="TARGET", help="The target's name."
)
_version = click.option(
    "--version", type=values.Version(), metavar="N", default=0, help="A version; the primary one, unless said."
)
_remote_name = click.option(
    "--remote-name", default="", metavar="NAME", help="Its name at the target; the same, unless said."
)
_TERMS = (
    click.option(
        "--operation", "operations", multiple=True, metavar="WORD", help="What it may do there (sign, wrapKey); repeat."
    ),
    click.option("--tag", "tags", multiple=True, metavar="NAME=VALUE", help="A tag there; may be repeated."),
    click.option("--disabled", is_flag=True, help="Leave it disabled there, once it is proven."),
    click.option("--not-before", metavar="TIME", help="Not valid there before, for example 2027-01-31T12:00:00Z."),
    click.option("--expires", metavar="TIME", help="Not valid there from then on."),
)


_of_several = click.option(
    "--remote-name", default="", metavar="NAME", help="Of several copies there, the one of this name."
)


def _held_to(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of what the key may do at the target, handed over as ``terms``."""

    def run(*args: Any, **options: Any) -> Any:
        given = {name: options.pop(name) for name in ("operations", "tags", "disabled", "not_before", "expires")}
        return command(*args, terms=_terms(**given), **options)

    given = update_wrapper(run, command)
    for option in reversed(_TERMS):
        given = option(given)
    return given


def _terms(
    operations: tuple[str, ...], tags: tuple[str, ...], not_before: str | None, expires: str | None, *, disabled: bool
) -> dict[str, Any]:
    terms: dict[str, Any] = {"operations": operations, "tags": ask.labels(tags, "--tag")}
    if disabled:
        terms["enabled"] = False
    if not_before is not None:  # an empty one is a mistake: the key would be valid for ever
        terms["not_before"] = ask.moment(not_before, "--not-before")
    if expires is not None:
        terms["expire_time"] = ask.moment(expires, "--expires")
    return {"terms": terms} if terms.keys() - {"operations", "tags"} or operations or tags else {}


@click.command(
    "import",
    epilog="Repeating an import settles or proves it; only what the target has not got any more is uploaded again.",
)
@click.argument("name", type=values.Name("key"))
@_target
@_version
@_remote_name
@_held_to
@changing
@formatted
@remote
@patient
def import_(wire: Wire, out: Output, change: Change, name: str, terms: dict[str, Any], **where_to: Any) -> None:
    """Import the key NAME to a target, wrapped in the HSM, and prove it there."""
    with ask.waiting("wrapping, uploading, proving"):
        done = wire.ask("imports", "ImportKey", name=name, **terms, **where_to, **change.fields)
    ask.dry_run_note(dry_run=change.dry_run)
    _told(out, done)


@click.command(
    epilog="\b\nExample:\n  broker key export payments --target hsm --out payments.byok\n"
    "  az keyvault key import --hsm-name payments --name payments --kty EC --curve P-256 --byok-file payments.byok\n"
    "  broker key confirm payments --target hsm\n"
)
@click.argument("name", type=values.Name("key"))
@_target
@_version
@_remote_name
@click.option("--out", "file", required=True, metavar="FILE", help="A new private file; never overwritten.")
@click.option("--kek-file", metavar="FILE", help="The pinned KEK, PEM; for a target that the broker cannot reach.")
@changing
@formatted
@remote
@patient
def export(
    wire: Wire, out: Output, change: Change, name: str, file: str, kek_file: str | None, **where_to: Any
) -> None:
    """Wrap the key NAME for a target into a file, to be carried there by hand."""
    check_target(file)
    kek = {"kek_pem": certificates.public_key(kek_file, "KEK file")} if kek_file is not None else {}
    with ask.waiting("wrapping"):
        made = wire.ask("imports", "ExportKey", name=name, **kek, **where_to, **change.fields)
    ask.dry_run_note(dry_run=change.dry_run)
    shown = record(getattr(made, "import"))
    if not change.dry_run:
        files.create(Path(file), made.transfer_file)
        shown |= {"file": file, "blob_sha256": made.blob_sha256}
        chat(f'{file} is written. Once it is uploaded: "broker key confirm {name} --target {where_to["target"]}".')
    out.one("export", shown)


@click.command(epilog="Nothing is uploaded; only what is proven is recorded as imported.")
@click.argument("name", type=values.Name("key"))
@_target
@_version
@_of_several
@_held_to
@changing
@formatted
@remote
@patient
def confirm(wire: Wire, out: Output, change: Change, name: str, terms: dict[str, Any], **at: Any) -> None:
    """Read back and prove the key NAME that was carried to a target by hand."""
    with ask.waiting("reading back, proving"):
        done = wire.ask("imports", "ConfirmImport", name=name, **terms, **at, **change.fields)
    ask.dry_run_note(dry_run=change.dry_run)
    _told(out, done)


@click.command(
    epilog="A copy that had come to nothing is looked for too: it is proven if it is back, and gone if nothing is left."
)
@click.argument("name", type=values.Name("key"))
@_target
@_version
@_of_several
@formatted
@remote
@patient
def prove(wire: Wire, out: Output, name: str, **at: Any) -> None:
    """Prove again that a target holds the key NAME and can use it."""
    with ask.waiting("proving"):
        done = wire.ask("imports", "ProveImport", name=name, **at)
    _told(out, done)


@click.command(
    epilog="STANDING: current, behind (of a version before the primary one), ahead, disabled, still-enabled, missing,\n"
    "failed, gone, unknown (its target was removed), pending, held or unproven. DRIFTS: see broker drift."
)
@click.argument("name", default="", type=values.Name("key"))
@click.option("--target", default="", type=values.Name("target"), metavar="TARGET", help="Only at this target.")
@click.option("--prove", "asks", is_flag=True, help="Ask each target first, and have each copy prove itself now.")
@formatted
@remote
@patient
def where(wire: Wire, out: Output, name: str, target: str, *, asks: bool) -> int:
    """List where the key NAME, or every key, lives outside the HSM, by the broker's own record; --prove asks there."""
    found = wire.pages("imports", "ListImports", "imports", name=name, target=target)
    rows, unproven = [record(one) for one in found], 0
    if asks:
        unproven = sum(not _proves(wire, one) for one in rows if one["standing"] in PROVABLE and not one["never_sent"])
        rows = [record(one) for one in wire.pages("imports", "ListImports", "imports", name=name, target=target)]
    out.many("import", rows, COLUMNS)
    if any(one["state"] == "proven" for one in rows) and not asks:
        chat('This is the broker\'s record, and proven means at PROVE TIME: "--prove" asks the targets now.')
    for one in rows:
        _warn(one)
    return int(Exit.FINDINGS if unproven else Exit.OK)


PROVABLE = {"current", "ahead", "behind", "still-enabled", "missing", "failed"}


def _proves(wire: Wire, one: dict[str, Any]) -> bool:
    """Whether a copy has proven itself just now; says why not."""
    place = {"name": one["key"], **{field: one[field] for field in ("version", "target", "remote_name")}}
    try:
        with ask.waiting(f"proving version {one['version']} of {one['key']} at {one['target']}"):
            wire.ask("imports", "ProveImport", **place)
    except Refusal as refusal:
        what = f"Version {one['version']} of {one['key']} at {one['target']} as {one['remote_name']}"
        chat(f"{what}: {refusal.reason}. {refusal.message}")
        return False
    return True


def _warn(one: dict[str, Any]) -> None:
    place = f"{one['remote_name']} at {one['target']}"
    if one["standing"] == "unproven":
        chat(
            f"{place} could not be proven and is still ENABLED there: it must not be used; the broker disables it as "
            "soon as the target lets it."
        )
    if one["standing"] == "still-enabled":
        chat(
            f"Version {one['version']} of {one['key']} as {place} was put out of use, and the target cannot do that: "
            "disable it there, and tell those who use it not to."
        )


def tell_copies(wire: Wire, name: str, *, ends: bool = False) -> None:
    """Say where copies of the key NAME are, or may be: what becomes of them, or that nothing done here reaches them.

    ``ends``: they are disabled now, and deleted in the end.
    """
    try:
        rows = [record(one) for one in wire.pages("imports", "ListImports", "imports", name=name)]
    except Refusal as refusal:
        chat(
            f"Where copies of {name} are could not be found out ({refusal.reason}); those at targets "
            f"{'are disabled now and deleted in the end' if ends else 'stay as they are'}."
        )
        return
    copies = [one for one in rows if not (one["state"] == "gone" or one["never_sent"])]
    becomes = "is disabled now, and deleted in the end" if ends else "stays as it is"
    for one in copies:
        unreached = one["state"] == "unknown"
        chat(f"Version {one['version']} {_whereabouts(one)}: that copy {'stays as it is' if unreached else becomes}.")
    if copies and not ends:
        chat("Disable or delete these copies where they are; the broker does not.")


def _whereabouts(copy: dict[str, Any]) -> str:
    """What is known of one copy, and since when."""
    name = f"as {copy['remote_name']}" + (f", version {copy['remote_version']}" if copy["remote_version"] else "")
    there = f"at the target {copy['target']} {name}"
    told = {
        "proven": f"was proven {there}" + (f" ({copy['prove_time']})" if copy["prove_time"] else ""),
        "failed": f"may be {there}, though it came to nothing ({copy['failure']}): what was deleted can be recovered",
        "disabling": f"is {there}, not proven, and is to be disabled",
        "unknown": f"may be {there}; that target was removed, and nobody knows",
    }
    return told.get(copy["state"], f"may be {there}")


def _told(out: Output, response: Any) -> None:
    told = record(response)
    entry, extra = told["import"], told.get("extra_versions", [])
    for one in extra:
        did = "was disabled" if one["disabled"] else "could NOT be disabled; disable it there"
        chat(f"The target held the same key a second time: version {one['remote_version']} {did}.")
    out.one("import", entry | ({"extra_versions": extra} if extra else {}))
    if entry["state"] == "failed":
        raise Refusal(entry["failure"] or "IMPORT_FAILED", "The key is not proven at the target.", Exit.FAILURE)
