"""``broker policy``: the one Cedar text that says who may do what."""

from __future__ import annotations

import difflib
import sys
from typing import Any

import click

from broker_cli import ask, files
from broker_cli.nouns import Noun
from broker_cli.output import Output, formatted
from broker_cli.refusal import Exit, Refusal
from broker_cli.screen import chat, plain_lines
from broker_cli.wire import Change, Wire, changing, remote
from broker_cli.words import record

MAX_POLICY = 64 * 1024
_RESOURCES = {
    "key": "key",
    "target": "target",
    "operator": "operator_resource",
    "secret": "secret",
    "trust": "trust_rule",
    "approval": "approval",
}


@click.group(
    cls=Noun,
    epilog="\b\nExamples:\n  broker policy show > policy.cedar\n  broker policy set policy.cedar\n"
    "  broker policy explain alice Sign key/payments\n"
    "  broker policy explain pipeline/deploy FetchSecrets secret/team/app/db\n"
    "  broker policy explain alice CreateTarget target/team-b-prod --asking mount=team-b\n",
)
def policy() -> None:
    """Who may do what, in Cedar."""


@policy.command()
@click.option(
    "--version",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    help="An older version; the one in force, unless said.",
)
@click.option("--schema", is_flag=True, help="The Cedar schema instead.")
@formatted
@remote
def show(wire: Wire, out: Output, version: int, *, schema: bool) -> None:
    """Print the policy."""
    found = wire.ask("policies", "GetPolicy", version=version)
    if out.format == "table":
        sys.stdout.write(plain_lines(found.schema if schema else found.policy.text))
    else:
        out.one("policy", {"schema": found.schema} if schema else record(found.policy))


@policy.command("set")
@click.argument("file")
@click.option(
    "--expected-version", type=click.IntRange(min=1), metavar="N", help="Refuse unless this version is in force."
)
@ask.yes
@changing
@formatted
@remote
def set_(wire: Wire, out: Output, change: Change, file: str, expected_version: int | None, *, sure: bool) -> None:
    """Put the policy in FILE ("-" for standard input) in force, after showing what changes."""
    text = _text(file)
    now = wire.ask("policies", "GetPolicy").policy
    if not _show_difference(now.text, text):
        chat("Nothing differs from the policy in force.")
        return
    if not change.dry_run:
        _valid(wire, text, now.version)  # nobody is asked about a policy that would not be taken
        ask.yes_or_no("Put this policy in force for everybody?", sure=sure)
    made = wire.ask(
        "policies", "SetPolicy", text=text, expected_version=expected_version or now.version, **change.fields
    )
    ask.dry_run_note(dry_run=change.dry_run)
    out.one("policy", _brief(made.policy))


@policy.command()
@click.argument("file")
@remote
def check(wire: Wire, file: str) -> None:
    """Let the broker validate the policy in FILE; nothing is changed."""
    _valid(wire, _text(file), wire.ask("policies", "GetPolicy").policy.version)
    chat("The policy is valid.")


@policy.command(epilog="Ends with exit code 3 when it is not allowed.")
@click.argument("principal")
@click.argument("action")
@click.argument("resource", default="broker")
@click.option(
    "--asking",
    multiple=True,
    metavar="NAME=VALUE",
    help="What the call would ask for: a target's mount, address …, an import's remote_name; may be repeated.",
)
@formatted
@remote
def explain(wire: Wire, out: Output, principal: str, action: str, resource: str, asking: tuple[str, ...]) -> int:
    """Say whether PRINCIPAL may call ACTION on RESOURCE, and why.

    PRINCIPAL is an operator's name or pipeline/NAME. RESOURCE is key/NAME, target/NAME, operator/NAME, secret/NAME,
    trust/NAME, approval/ID or broker.
    """
    given = ask.labels(asking, "--asking")
    found = wire.ask(
        "policies", "ExplainPolicy", operator=principal, action=action, asking=given, **_resource(resource)
    )
    out.one("decision", record(found))
    return int(Exit.OK if found.allowed else Exit.DENIED)


def _resource(text: str) -> dict[str, Any]:
    if text == "broker":
        return {"broker": True}
    kind, _, name = text.partition("/")
    if kind not in _RESOURCES or not name:
        raise click.BadParameter(
            "Write key/NAME, target/NAME, operator/NAME, secret/NAME, trust/NAME, approval/ID or broker.",
            param_hint="RESOURCE",
        )
    return {_RESOURCES[kind]: name}


def _valid(wire: Wire, text: str, version: int) -> None:
    wire.ask("policies", "SetPolicy", text=text, expected_version=version, validate_only=True)


def _text(file: str) -> str:
    try:
        return files.take(file, MAX_POLICY, "policy").decode()
    except UnicodeDecodeError:
        raise Refusal("POLICY_NOT_TEXT", "The policy is not UTF-8 text.", Exit.USAGE) from None


def _show_difference(now: str, then: str) -> bool:
    lines = difflib.unified_diff(now.splitlines(), then.splitlines(), "in force", "new", lineterm="")
    difference = "\n".join(lines)
    if difference:
        chat(difference)
    return bool(difference)


def _brief(document: Any) -> dict[str, Any]:
    return {name: value for name, value in record(document).items() if name != "text"}
