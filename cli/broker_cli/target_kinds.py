"""``broker target add``: a command for each kind of target, made of what the wire says of its settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import click

from broker_cli import ask, certificates, values
from broker_cli.nouns import Noun
from broker_cli.output import Output, formatted
from broker_cli.screen import chat
from broker_cli.wire import CONNECTION, Change, Wire, changing, patient, remote, remote_by_profile
from broker_cli.words import record


class Kinds(Noun):
    """Its commands are made when they are first looked at, since that takes the wire's own description."""

    @property
    def commands(self) -> dict[str, click.Command]:
        """By the name of the kind."""
        return self._made

    @commands.setter
    def commands(self, _: object) -> None:
        """Nobody adds one by hand."""

    @cached_property
    def _made(self) -> dict[str, click.Command]:
        return {each.name: each.command() for each in _kinds()}


def place(target: Any) -> str:
    """Where a target is; "" for one of a kind that this command does not know."""
    chosen = target.WhichOneof("settings")
    known = {each.field: each.place for each in _kinds()}
    settings = getattr(target, chosen) if chosen in known else None
    return re.sub(r"\{(\w+)\}", lambda named: str(getattr(settings, named[1])), known.get(chosen, ""))


def _kinds() -> Iterator[_Kind]:
    from broker_api.v1 import targets_pb2  # noqa: PLC0415  slow to load

    for field in targets_pb2.CreateTargetRequest.DESCRIPTOR.oneofs_by_name["settings"].fields:
        yield _Kind(field, targets_pb2)


class _Kind:
    """One choice of ``CreateTargetRequest.settings``."""

    def __init__(self, field: Any, wire: Any) -> None:
        told = field.message_type.GetOptions().Extensions[wire.kind]
        self.field = field.name
        self.name = field.name.replace("_", "-")
        self.place = told.place
        self._about = told.about
        self._settings = [_Setting(each, wire) for each in field.message_type.fields]
        self._kek = next((each for each in self._settings if each.form == wire.SETTING_FORM_KEK), None)

    def command(self) -> click.Command:
        """The one that registers such a target."""
        taken = [f"--{each.option}" for each in self._settings if each.option in _CONNECTING]
        made = changing(formatted((remote_by_profile if taken else remote)(patient(self._run))))
        for option in reversed([*self._options(), _THUMBPRINT]):
            made = option(made)
        about = self._about
        if taken:
            about += (
                "\n\nThe broker's own address and CA come from the profile or the environment here; "
                f"{' and '.join(taken)} are the target's."
            )
        return click.command(self.name, help=about)(click.argument("name", type=values.Name("target"))(made))

    def _options(self) -> Iterator[Callable[..., Any]]:
        for each in self._settings:
            yield each.asked()
            if each is self._kek:
                yield click.option("--create-kek", is_flag=True, help="Make the KEK there, for importing only.")

    def _run(
        self, wire: Wire, out: Output, change: Change, name: str, thumbprint: str, *, create_kek: bool = False,
        **given: str,
    ) -> None:  # fmt: skip
        if self._kek and create_kek == ("/" in given[self._kek.name]):
            raise click.BadParameter(
                "Give the KEK's versioned id, or with --create-kek the bare name it is to have.",
                param_hint=f"--{self._kek.option}",
            )
        described = {each.field: each.sent(given[each.name], name) for each in self._settings}
        asked = {self.field: described, "expected_kek_thumbprint": thumbprint, "create_kek": create_kek}
        with ask.waiting("connecting to the target"):
            made = wire.ask("targets", "CreateTarget", name=name, **asked, **change.fields)
        ask.dry_run_note(dry_run=change.dry_run)
        if made.target.kek_thumbprint and not (thumbprint or create_kek or change.dry_run):
            chat(_PINNED)
        out.one("target", record(made.target))


class _Setting:
    """One field of a kind's settings."""

    def __init__(self, field: Any, wire: Any) -> None:
        self._told = field.GetOptions().Extensions[wire.setting]
        self._wire = wire
        self.field = field.name
        self.name = f"setting_{field.name}"  # no other option's
        self.form = self._told.form
        self.option = self._told.option or field.name.replace("_", "-")

    def asked(self) -> Callable[..., Any]:
        """Its option."""
        told = self._told
        more: dict[str, Any] = {"required": True} if told.required else {"default": told.default}
        if told.choices:
            more["type"] = click.Choice(tuple(told.choices))
        shown = bool(told.default)
        return click.option(
            f"--{self.option}", self.name, metavar=told.metavar or None, help=told.help, show_default=shown, **more
        )

    def sent(self, given: str, target: str) -> str:
        """What is sent for what was typed."""
        wire = self._wire
        if self.form == wire.SETTING_FORM_CERTIFICATES:
            return certificates.certificates(given, "CA file")
        if self.form == wire.SETTING_FORM_OWN_CREDENTIAL:
            given = given or target
        if self.form in {wire.SETTING_FORM_CREDENTIAL, wire.SETTING_FORM_OWN_CREDENTIAL} and "/" in given:
            raise click.BadParameter(
                "Name a file in the broker's credentials folder; no path.", param_hint=f"--{self.option}"
            )
        return given


_PINNED = "The KEK was pinned as it was found; compare its thumbprint with what the target's administrator says."
_CONNECTING = {name.replace("_", "-") for name in CONNECTION}
_THUMBPRINT = click.option(
    "--thumbprint",
    callback=ask.not_empty,
    metavar="SHA256",
    help="The KEK's, got by another way; else what is found is pinned.",
)
