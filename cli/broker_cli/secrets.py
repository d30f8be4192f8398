"""``broker secret``: static secrets. Values come from files, standard input or hidden questions, never as arguments."""

from __future__ import annotations

import base64
import json
import sys
from typing import Any

import click

from broker_cli import ask, files, values, words
from broker_cli.nouns import Noun
from broker_cli.output import Output, check_raw, formatted
from broker_cli.refusal import Exit, Refusal
from broker_cli.screen import chat, plain
from broker_cli.wire import Change, Wire, changing, remote, span
from broker_cli.words import record

MAX_VALUES = 64 * 1024
MAX_JSON = 512 * 1024
COLUMNS = (
    "name",
    "latest_version",
    "update_time",
    "expire_time",
    "renew_time",
    "overdue",
    "last_reader",
    "last_read_time",
)

_versions = click.option(
    "--version",
    "versions",
    type=click.IntRange(min=1),
    metavar="N",
    multiple=True,
    required=True,
    help="May be repeated.",
)


_given = click.option(
    "--field", "given", multiple=True, metavar="NAME[=@FILE]", help="A field: from a file, @- for a pipe, or asked for."
)
_json_file = click.option("--json-file", metavar="FILE", help='Fields as a JSON object of strings; "-" for a pipe.')


@click.group(
    cls=Noun,
    epilog="\b\nExamples:\n"
    "  broker secret put team/app/db --field user=@user.txt --field password\n"
    "  broker secret patch team/app/db --field password\n"
    "  pass show db | broker secret put team/app/db --field password=@-\n"
    "  broker secret get team/app/db#password | psql-with-password-on-stdin\n"
    "  broker secret list team/app\n"
    "  broker secret age team/app/db --most 90d\n",
)
def secret() -> None:
    """Write, find, version and destroy static secrets."""


@secret.command(epilog="Without --field or --json-file one field named value is asked for, or read from a pipe.")
@click.argument("name")
@_given
@_json_file
@click.option(
    "--expected-version", type=click.IntRange(min=0), metavar="N", help="Refuse unless this is the latest; 0: none yet."
)
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="A label; may be repeated.")
@click.option("--expires", metavar="TIME", help="Not fetched from then on, for example 2027-01-31T12:00:00Z.")
@changing
@formatted
@remote
def put(
    wire: Wire, out: Output, change: Change, name: str, given: tuple[str, ...], json_file: str | None, **more: Any
) -> None:
    """Write a new version of the secret NAME: all its fields. Without --label the labels stay as they are.

    What the version before had and this one has not is told; "patch" changes single fields.
    """
    rest = {"expected_version": more["expected_version"], "labels": ask.labels(more["labels"])}
    if more["expires"] is not None:  # an empty one is a mistake, not a secret that never expires
        rest["expire_time"] = ask.moment(more["expires"], "--expires")
    fields = _fields(given, json_file)
    made = wire.ask("secrets", "PutSecret", name=name, fields=fields, **rest, **change.fields)
    _tell_of_dropped(made)
    _changed(out, change, made)


@secret.command(
    epilog="\b\nExamples:\n"
    "  broker secret patch team/app/db --field password=@new.txt\n"
    "  broker secret patch team/app/db --field host --remove old-password\n"
)
@click.argument("name")
@_given
@_json_file
@click.option("--remove", "removed", multiple=True, metavar="NAME", help="A field that goes; may be repeated.")
@click.option("--expected-version", type=click.IntRange(min=1), metavar="N", help="Refuse unless this is the latest.")
@changing
@formatted
@remote
def patch(
    wire: Wire,
    out: Output,
    change: Change,
    name: str,
    given: tuple[str, ...],
    json_file: str | None,
    removed: tuple[str, ...],
    expected_version: int | None,
) -> None:
    """Write a new version of the secret NAME that is the latest one with some fields changed.

    The other fields, the labels and the time of expiry stay. Nothing of them is shown: who may patch need not be one
    who may fetch.
    """
    if not given and json_file is None and not removed:
        raise click.UsageError("Say what is to change: --field, --json-file or --remove.")
    fields = _fields(given, json_file) if given or json_file is not None else {}
    made = wire.ask(
        "secrets", "PatchSecret", name=name, fields=fields, remove=removed, expected_version=expected_version,
        **change.fields,
    )  # fmt: skip
    _changed(out, change, made)


@secret.command()
@click.argument("reference")
@click.option("--reveal", is_flag=True, help="Show it on a terminal.")
@click.option("--out", "target", metavar="FILE", help="A new private file for the one field; never overwritten.")
@formatted
@remote
def get(wire: Wire, out: Output, reference: str, target: str | None, *, reveal: bool) -> None:
    """Fetch a secret: NAME, NAME#FIELD, NAME@VERSION or NAME@VERSION#FIELD.

    One field goes as it is into a pipe or a file; several are shown as a table, or as --format says (values that are
    no text in base64, under the name with ".base64" behind it).
    """
    check_raw(target, reveal=reveal)
    [found] = wire.ask("sessions", "FetchSecrets", references=[reference]).secrets
    entry: dict[str, Any] = {}
    for name, value in sorted(found.fields.items()):
        entry |= _shown(name, value)
    if len(found.fields) == 1 and (out.asked is None or target is not None):
        [value] = found.fields.values()
        out.raw("secret", value, entry, target, secret=True, reveal=reveal)
    elif target is not None:
        raise Refusal("FIELD_NEEDED", "The secret has several fields; name one: NAME#FIELD.", Exit.USAGE)
    else:
        out.one("secret", entry)


@secret.command()
@click.argument("name")
@formatted
@remote
def show(wire: Wire, out: Output, name: str) -> None:
    """Show what is known of the secret NAME, without its values."""
    out.one("secret", record(wire.ask("secrets", "GetSecret", name=name).secret))


@secret.command("list")
@click.argument("prefix", default="")
@click.option("--contains", default="", metavar="TEXT", help="Only those with this in their name.")
@click.option("--overdue", is_flag=True, help="Only those that are older than they may become.")
@formatted
@remote
def list_(wire: Wire, out: Output, **wanted: Any) -> None:
    """List the secrets that you may see, or those in the folder PREFIX (whole segments)."""
    found = wire.pages("secrets", "ListSecrets", "secrets", **wanted)
    out.many("secret", [record(one) for one in found], COLUMNS)


@secret.command()
@click.argument("name")
@formatted
@remote
def versions(wire: Wire, out: Output, name: str) -> None:
    """List the versions of the secret NAME."""
    found = [record(one) for one in wire.pages("secrets", "ListSecretVersions", "versions", name=name)]
    out.many("version", found, ("version", "state", "fields", "create_time", "author"))


@secret.command()
@click.argument("name")
@_versions
@changing
@formatted
@remote
def delete(wire: Wire, out: Output, change: Change, name: str, versions: tuple[int, ...]) -> None:
    """Hide versions of the secret NAME; "undelete" brings them back."""
    _changed(out, change, wire.ask("secrets", "DeleteSecretVersions", name=name, versions=versions, **change.fields))


@secret.command()
@click.argument("name")
@_versions
@changing
@formatted
@remote
def undelete(wire: Wire, out: Output, change: Change, name: str, versions: tuple[int, ...]) -> None:
    """Bring deleted versions of the secret NAME back."""
    _changed(out, change, wire.ask("secrets", "UndeleteSecretVersions", name=name, versions=versions, **change.fields))


@secret.command()
@click.argument("name")
@_versions
@ask.yes
@changing
@formatted
@remote
def destroy(wire: Wire, out: Output, change: Change, name: str, versions: tuple[int, ...], *, sure: bool) -> None:
    """Erase versions of the secret NAME for good."""
    ask.by_name(name, "The versions are gone for good; nothing brings them back.", sure=sure, dry_run=change.dry_run)
    _changed(out, change, wire.ask("secrets", "DestroySecretVersions", name=name, versions=versions, **change.fields))


@secret.command()
@click.argument("name")
@click.option("--most", type=values.Span(3600, 3660 * 86_400, "d"), metavar="TIME", help="As 90d or P90D.")
@click.option("--off", is_flag=True, help="As old as it likes.")
@changing
@formatted
@remote
def age(wire: Wire, out: Output, change: Change, name: str, most: int | None, *, off: bool) -> None:
    """Say how old the latest version of the secret NAME may become; afterwards it is told as overdue, and works on.

    It is told by "secret list", "doctor" and the broker's log, and some time before as well. A new version begins anew.
    """
    if (most is None) is not off:
        raise click.UsageError("Give --most or --off.")
    _changed(out, change, wire.ask("secrets", "SetSecretMaxAge", name=name, **span("max_age", most), **change.fields))


@secret.command()
@formatted
@remote
def root(wire: Wire, out: Output) -> None:
    """Show the root key that wraps all secrets, and how many versions still wait to be wrapped under it."""
    out.one("root", record(wire.ask("secrets", "GetRootKey")))


@secret.command("rotate-root")
@ask.yes
@changing
@formatted
@remote
def rotate_root(wire: Wire, out: Output, change: Change, *, sure: bool) -> None:
    """Make a new root key in the HSM; everything is wrapped under it in the background, and stays readable."""
    if not change.dry_run:
        ask.yes_or_no("Make a new root key for all secrets?", sure=sure)
    with ask.waiting("the HSM makes the key"):
        made = wire.ask("secrets", "RotateRootKey", **change.fields)
    ask.dry_run_note(dry_run=change.dry_run)
    out.one("root", record(made))


@secret.command("settle-root")
@click.argument("version", type=click.IntRange(min=1))
@click.argument("settlement", type=click.Choice(words.SETTLEMENTS))
@ask.yes
@changing
@formatted
@remote
def settle_root(wire: Wire, out: Output, change: Change, version: int, settlement: str, *, sure: bool) -> None:
    """Say what becomes of the root key VERSION that is held or kept since the database was restored."""
    if settlement == "discard" and not change.dry_run:
        ask.yes_or_no("Let this root key be destroyed in the HSM? What only it opens is lost.", sure=sure)
    wanted = words.wire_name("SETTLEMENT", settlement)
    made = wire.ask("secrets", "SettleRootKey", version=version, settlement=wanted, **change.fields)
    ask.dry_run_note(dry_run=change.dry_run)
    out.one("root", record(made))


def _tell_of_dropped(made: Any) -> None:
    number = made.secret.latest_version
    if made.dropped:
        fields, them = ", ".join(map(plain, made.dropped)), "it" if len(made.dropped) == 1 else "them"
        chat(
            f"broker: dropped: {fields}. Version {number - 1} had {them}, and version {number} has not; "
            '"broker secret patch" changes single fields and keeps the others.'
        )
    if made.HasField("dropped_expire_time"):
        chat(f"broker: dropped: the time of expiry, {made.dropped_expire_time.ToJsonString()}; --expires sets one.")


def _changed(out: Output, change: Change, response: Any) -> None:
    ask.dry_run_note(dry_run=change.dry_run)
    out.one("secret", record(response.secret))


def _shown(name: str, value: bytes) -> dict[str, str]:
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        return {f"{name}.base64": base64.b64encode(value).decode()}


def _fields(given: tuple[str, ...], json_file: str | None) -> dict[str, bytes]:
    if json_file is not None:
        if given:
            raise click.UsageError("Give --field or --json-file, not both.")
        return _from_json(files.take(json_file, MAX_JSON, "secret"))
    given = given or ("value" if _is_somebody_there() else "value=@-",)
    sources = dict(one.partition("=")[::2] for one in given)
    if len(sources) < len(given):
        raise click.UsageError("A field is given twice.")
    if any("=" in one and not one.partition("=")[2].startswith("@") for one in given):
        # What stands in an argument is in the process list and the shell's history already (CL-01).
        raise Refusal(
            "VALUE_IN_ARGUMENT",
            "A value is never an argument, where others can see it: write NAME=@FILE, NAME=@- or NAME alone. "
            "If this was a real one, replace it.",
            Exit.USAGE,
        )
    if list(sources.values()).count("@-") > 1:
        raise click.UsageError("Standard input holds the value of one field; take the others from files.")
    return {name: _taken(name, source[1:]) if source else _asked(name) for name, source in sources.items()}


def _taken(name: str, source: str) -> bytes:
    value = files.take(source, MAX_VALUES, "value")
    if source == "-" and not value:  # what should have written it has failed, or there was no pipe
        raise Refusal(
            "VALUE_EMPTY",
            f"Nothing came from standard input for the field {plain(name)}, so nothing is written; "
            f"if an empty value is meant: --field {plain(name)}=@/dev/null.",
            Exit.USAGE,
        )
    if value.endswith(b"\n") and value.count(b"\n") == 1:
        chat(f"broker: {plain(name)} ends with a line break, which is now part of the value (printf writes none).")
    return value


def _is_somebody_there() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _asked(name: str) -> bytes:
    if not _is_somebody_there():
        raise Refusal(
            "VALUE_NEEDED", "There is nobody to ask for a value here: write --field NAME=@FILE or NAME=@-.", Exit.USAGE
        )
    value: str = click.prompt(f"Value of {plain(name)}", hide_input=True, err=True, confirmation_prompt=True)
    return value.encode()


def _from_json(text: bytes) -> dict[str, bytes]:
    try:
        found = json.loads(text, object_pairs_hook=_each_once)
    except ValueError:  # its own text could quote a value
        raise Refusal("JSON_INVALID", "That is not one JSON object, each name once.", Exit.USAGE) from None
    except RecursionError:
        raise Refusal("JSON_INVALID", "That is nested too deeply; send an object of strings.", Exit.USAGE) from None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise Refusal("JSON_INVALID", "The fields must be one JSON object whose values are strings.", Exit.USAGE)
    try:
        return {name: value.encode() for name, value in found.items()}
    except UnicodeEncodeError:
        raise Refusal("JSON_INVALID", "A value holds half a character (a lone surrogate).", Exit.USAGE) from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found
