"""``broker operator``: the people who may call, and the profile folders they are handed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from broker_cli import ask, ca, files, profiles
from broker_cli.nouns import Noun
from broker_cli.output import Output, formatted
from broker_cli.refusal import Exit, Refusal
from broker_cli.screen import chat
from broker_cli.wire import Change, Wire, changing, remote, span
from broker_cli.words import record

COLUMNS = ("name", "groups", "state", "not_before", "create_time")

_out = click.option(
    "--out",
    "folder",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="A new folder for the profile.",
)
_csr = click.option("--csr", metavar="FILE", help="A request the operator made; then no private key is made here.")
_hours = click.option(
    "--hours", type=click.FloatRange(0.1, 168), metavar="HOURS", help="How long the certificate lives; 12, unless said."
)


@click.group(
    cls=Noun,
    epilog="\b\nExamples:\n  broker operator add alice --group admins --out alice\n"
    "  cp -r alice ~/.config/broker/profiles/default   (on alice's machine)\n  broker operator renew\n",
)
def operator() -> None:
    """The people who may call, and their short-lived certificates."""


@operator.command()
@click.argument("name")
@click.option("--group", "groups", multiple=True, metavar="GROUP", help="A group; may be repeated.")
@_out
@_csr
@_hours
@changing
@formatted
@remote
def add(
    wire: Wire, out: Output, change: Change, name: str, groups: tuple[str, ...], folder: Path, csr: str | None,
    hours: float | None,
) -> None:  # fmt: skip
    """Register the operator NAME and write a profile folder, ready to hand over."""
    _warn_of_strange_groups(wire, groups)

    def sign(request: bytes) -> Any:
        return wire.ask(
            "operators", "AddOperator", name=name, groups=groups, csr_pem=request, **_ttl(hours), **change.fields
        )

    if change.dry_run:
        out.one("operator", record(sign(_key_and_request(csr)[1]).operator))
        ask.dry_run_note(dry_run=True)
    else:
        _hand_over(wire, out, folder, _Asked(name, csr, sign))


@operator.command()
@click.argument("name")
@_out
@_csr
@_hours
@formatted
@remote
def issue(wire: Wire, out: Output, name: str, folder: Path, csr: str | None, hours: float | None) -> None:
    """Write a new profile folder for the operator NAME, whose certificate has lapsed."""

    def sign(request: bytes) -> Any:
        return wire.ask("operators", "IssueCertificate", name=name, csr_pem=request, **_ttl(hours))

    _hand_over(wire, out, folder, _Asked(name, csr, sign))


@operator.command()
@_hours
@formatted
@remote
def renew(wire: Wire, out: Output, hours: float | None) -> None:
    """Get a fresh certificate for yourself and put it in the place of the old one; the key stays."""
    from broker_cli.key_pairs import request_for  # noqa: PLC0415  cryptography is slow to load

    place = wire.place
    if place.certificate is None or place.key is None:
        raise Refusal("IDENTITY_INCOMPLETE", "Give --ca-file, --cert and --key together, or a profile.", Exit.USAGE)
    request = request_for(files.read_private(place.key, profiles.MAX_PEM, "private key"))
    made = wire.ask("operators", "RenewCertificate", csr_pem=request.decode(), **_ttl(hours)).certificate
    files.replace(place.certificate, made.pem.encode())
    _follow_server(place.ca, place.certificate.parent, made.server_ca_pem)
    brief = _brief(made)
    chat(f"The certificate in {place.certificate} is fresh.")
    if hours is not None and brief["hours_left"] < round(hours, 1):
        chat(f"It lives {brief['hours_left']} hours and not {hours:g}: that is the most that a renewal gives.")
    out.one("certificate", brief)


@operator.command("list")
@formatted
@remote
def list_(wire: Wire, out: Output) -> None:
    """List the operators."""
    found = wire.pages("operators", "ListOperators", "operators")
    out.many("operator", [record(one) for one in found], COLUMNS)


@operator.command()
@click.argument("name")
@click.option("--group", "names", multiple=True, metavar="GROUP", help="A group to be in; may be repeated.")
@click.option("--none", "no_group", is_flag=True, help="In no group at all.")
@changing
@formatted
@remote
def groups(wire: Wire, out: Output, change: Change, name: str, names: tuple[str, ...], *, no_group: bool) -> None:
    """Put the operator NAME into exactly these groups."""
    if bool(names) == no_group:
        raise click.UsageError("Give the groups with --group, or --none to take all away.")
    _warn_of_strange_groups(wire, names)
    made = wire.ask("operators", "SetOperatorGroups", name=name, groups=names, **change.fields)
    ask.dry_run_note(dry_run=change.dry_run)
    out.one("operator", record(made.operator))


@operator.command()
@click.argument("name")
@ask.yes
@changing
@formatted
@remote
def revoke(wire: Wire, out: Output, change: Change, name: str, *, sure: bool) -> None:
    """Refuse every certificate that the operator NAME holds now."""
    ask.by_name(name, "None of their certificates will be taken any more.", sure=sure, dry_run=change.dry_run)
    made = wire.ask("operators", "RevokeCertificates", name=name, **change.fields)
    ask.dry_run_note(dry_run=change.dry_run)
    out.one("operator", record(made.operator))


@operator.command()
@click.argument("name")
@ask.yes
@changing
@formatted
@remote
def remove(wire: Wire, out: Output, change: Change, name: str, *, sure: bool) -> None:
    """Remove the operator NAME for good; nobody gets the name again."""
    ask.by_name(name, "They cannot come back under this name.", sure=sure, dry_run=change.dry_run)
    made = wire.ask("operators", "RemoveOperator", name=name, **change.fields)
    ask.dry_run_note(dry_run=change.dry_run)
    out.one("operator", record(made.operator))


@operator.command()
@formatted
@remote
def whoami(wire: Wire, out: Output) -> None:
    """Show whom the broker takes you for."""
    out.one("caller", record(wire.ask("operators", "WhoAmI")))


def _warn_of_strange_groups(wire: Wire, groups: tuple[str, ...]) -> None:
    """A misspelt group is a group that gives nothing, and nobody else would say so."""
    if not groups:
        return
    try:
        policy = wire.ask("policies", "GetPolicy").policy.text
    except Refusal:
        return  # a caller who may not read the policy cannot be told what is in it
    for group in groups:
        if f'Group::"{group}"' not in policy:
            chat(f"The policy names no group {group}, so being in it gives no rights yet.")


@dataclass(frozen=True, slots=True)
class _Asked:
    """Whom a certificate is for, the file of a request that they have made, and how one is signed."""

    name: str
    csr: str | None
    sign: Callable[[bytes], Any]


def _hand_over(wire: Wire, out: Output, folder: Path, asked: _Asked) -> None:
    """Make the key, have its client certificate signed, and leave a whole profile folder or none at all."""
    from broker_cli.key_pairs import folder_in_the_making  # noqa: PLC0415  cryptography is slow to load

    if wire.place.ca is None:
        raise Refusal("IDENTITY_INCOMPLETE", "Give --ca-file, --cert and --key together, or a profile.", Exit.USAGE)
    known = files.read(wire.place.ca, profiles.MAX_PEM, "CA file")
    with folder_in_the_making(folder) as making:
        waiting = folder.with_name(f"{folder.name}.{asked.name}.waiting")
        key, request = _kept(waiting) or _key_and_request(asked.csr)
        if key is not None:
            files.create(making / "key.pem", key)  # before anybody is registered: a full disk must show now
        made = _signed(asked, waiting, key, request)
        contents = {
            "cert.pem": made.certificate.pem.encode(),
            "ca.pem": ca.followed(known, made.certificate.server_ca_pem) or known,
            "operator-ca.pem": made.certificate.ca_pem.encode(),
        }
        profiles.write(making, wire.place.address, contents)
    _forget(waiting)
    _say_next(folder, wire.place.address, whole=key is not None)
    out.one("certificate", _brief(made.certificate) | {"folder": str(folder)})


def _signed(asked: _Asked, waiting: Path, key: bytes | None, request: bytes) -> Any:
    """The answer; a request that waits for an approval is kept, since only that very one will be approved."""
    try:
        return asked.sign(request)
    except Refusal as refused:
        if refused.reason == "APPROVAL_REQUIRED" and key is not None:
            if not waiting.exists():
                waiting.mkdir(mode=0o700)
                files.create(waiting / "key.pem", key)
                files.create(waiting / "request.pem", request)
            chat(f"The key stays in {waiting} meanwhile: once it is approved, give the same command. Else delete it.")
        raise


def _kept(waiting: Path) -> tuple[bytes, bytes] | None:
    """The key and the request of the same command before, which wait for an approval."""
    if not waiting.is_dir():
        return None
    key, request = (files.read_private(waiting / name, profiles.MAX_PEM, name) for name in ("key.pem", "request.pem"))
    return key, request


def _forget(waiting: Path) -> None:
    if waiting.is_dir():
        for name in ("key.pem", "request.pem"):
            (waiting / name).unlink()
        waiting.rmdir()


def _follow_server(file: Path | None, folder: Path, offered: str) -> None:
    """Have a profile trust the CAs of today as the broker's server: it was told by a server that it trusts."""
    if file is None or file.parent.resolve() != folder.resolve():
        return  # a file that others use too is for them to change
    content = ca.followed(files.read(file, profiles.MAX_PEM, "CA file"), offered)
    if content is not None:
        files.replace(file, content)
        chat(f"{file} has the broker's CAs of today.")


def _say_next(folder: Path, address: str, *, whole: bool) -> None:
    chat(f"The profile is in {folder}: hand it over by a safe way, and delete it here; it works as --profile {folder}/")
    if address.startswith(("127.", "localhost:", "[::1]:")):
        chat(f"It leads to {address}, this machine: for use elsewhere correct the address in its {profiles.FILE}.")
    if not whole:
        chat("Its key.pem is missing: the operator puts the private key of the request there (chmod 600).")


def _key_and_request(csr: str | None) -> tuple[bytes | None, bytes]:
    from broker_cli.key_pairs import check_request, fresh_key  # noqa: PLC0415  cryptography is slow to load

    if csr is None:
        return fresh_key()
    return None, check_request(files.take(csr, profiles.MAX_PEM, "request"))


def _ttl(hours: float | None) -> dict[str, Any]:
    return span("ttl", None if hours is None else int(hours * 3600))


def _brief(certificate: Any) -> dict[str, Any]:
    left = certificate.expire_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC)
    return {
        "serial": certificate.serial,
        "expire_time": certificate.expire_time.ToJsonString(),
        "hours_left": round(left.total_seconds() / 3600, 1),
    }
