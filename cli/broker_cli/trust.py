"""``broker trust``: which CI identity becomes which pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from broker_cli import ask, certificates, files, rule_file, values
from broker_cli.nouns import Noun
from broker_cli.output import Output, formatted
from broker_cli.refusal import Exit, Refusal
from broker_cli.screen import chat
from broker_cli.wire import Change, Wire, changing, remote
from broker_cli.words import PRESETS, record, wire_name

MAX_TOKEN = 64 * 1024
PRESENTED_AGAIN = "kubernetes"
"""The preset whose tokens are shown again and again until something renews them, and are not for single use."""

COLUMNS = ("name", "grade", "preset", "issuer", "pipeline", "audience")


def described(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that describe a rule, beside or instead of a file."""
    options = (
        click.option(
            "--file", "-f", "file", metavar="FILE", help='The rule as YAML or TOML ("-": YAML from standard input).'
        ),
        click.option("--preset", type=click.Choice(PRESETS), help="Whose identity tokens these are."),
        click.option("--issuer", metavar="URL", help="The iss of the tokens, exactly."),
        click.option("--audience", metavar="TEXT", help="The one aud of the tokens, exactly."),
        click.option("--pipeline", metavar="NAME", help="The principal that they become: pipeline/NAME."),
        click.option("--match", "exact", multiple=True, metavar="CLAIM=VALUE", help="Exactly; again for more choices."),
        click.option("--glob", "globs", multiple=True, metavar="CLAIM=PATTERN", help='"*" stays between slashes.'),
        click.option(
            "--contains", multiple=True, metavar="CLAIM=VALUE", help="Of a claim that is a list: VALUE is in it."
        ),
        click.option("--max-session", type=values.Span(60, 86_400), metavar="SPAN", help="1h (3600), unless said."),
        click.option(
            "--single-use/--reusable",
            default=None,
            help="Whether each token opens one session; so it is, unless said, but for kubernetes.",
        ),
        click.option("--issuer-ca-file", metavar="FILE", help="CA of the issuer's server, PEM, if not a public one."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group(
    cls=Noun,
    epilog="\b\nExamples:\n  broker trust add deploy --preset github --pipeline deploy \\\n"
    "      --issuer https://token.actions.githubusercontent.com --audience https://broker.example \\\n"
    "      --match repository_id=42 \\\n"
    "      --match repository_owner_id=7 --match event_name=push --match ref=refs/heads/main\n"
    "  broker trust test deploy --token-file job.jwt\n",
)
def trust() -> None:
    """Which CI identity becomes which pipeline."""


@trust.command()
@click.argument("name")
@described
@changing
@formatted
@remote
def add(wire: Wire, out: Output, change: Change, name: str, **described_: Any) -> None:
    """Save a rule as NAME; one that is graded F is refused."""
    made = wire.ask("trust", "CreateTrustRule", rule=_rule(name, described_), **change.fields)
    ask.dry_run_note(dry_run=change.dry_run)
    out.one("trust_rule", _shown(made.rule))


@trust.command(epilog="Ends with exit code 10 when the rule would be refused or is graded C or worse.")
@click.argument("name", default="rule")
@described
@formatted
@remote
def lint(wire: Wire, out: Output, name: str, **described_: Any) -> int:
    """Let the broker grade a rule, A to F with the reasons; nothing is saved."""
    rule = _rule(name, described_)
    try:
        found = wire.ask("trust", "CreateTrustRule", rule=rule, validate_only=True).rule
    except Refusal as refusal:
        if refusal.reason == "NAME_TAKEN":
            stored = wire.ask("trust", "GetTrustRule", name=name).rule
            rule["revision"] = stored.revision
            found = wire.ask("trust", "UpdateTrustRule", rule=rule, validate_only=True).rule
        elif refusal.reason == "TRUST_RULE_WEAK":
            out.one("grade", {"grade": "F", "findings": [refusal.format_message()]})
            return int(Exit.FINDINGS)
        else:
            raise
    out.one("grade", {"grade": found.grade, "findings": list(found.findings)})
    return int(Exit.OK if found.grade in {"A", "B"} else Exit.FINDINGS)


@trust.command()
@click.argument("name")
@formatted
@remote
def show(wire: Wire, out: Output, name: str) -> None:
    """Show the rule NAME with its grade."""
    out.one("trust_rule", _shown(wire.ask("trust", "GetTrustRule", name=name).rule))


@trust.command("list")
@formatted
@remote
def list_(wire: Wire, out: Output) -> None:
    """List the rules."""
    out.many("trust_rule", [_shown(one) for one in wire.pages("trust", "ListTrustRules", "rules")], COLUMNS)


@trust.command()
@click.argument("name")
@described
@changing
@formatted
@remote
def update(wire: Wire, out: Output, change: Change, name: str, **described_: Any) -> None:
    """Put a new description in the place of the rule NAME's; it is graded anew."""
    stored = wire.ask("trust", "GetTrustRule", name=name).rule
    rule = {**_rule(name, described_), "revision": stored.revision}
    made = wire.ask("trust", "UpdateTrustRule", rule=rule, **change.fields)
    ask.dry_run_note(dry_run=change.dry_run)
    out.one("trust_rule", _shown(made.rule))


@trust.command()
@click.argument("name")
@ask.yes
@changing
@remote
def delete(wire: Wire, change: Change, name: str, *, sure: bool) -> None:
    """Forget the rule NAME; its jobs can log in no more."""
    ask.by_name(name, "Jobs that log in by this rule will be refused.", sure=sure, dry_run=change.dry_run)
    wire.ask("trust", "DeleteTrustRule", name=name, **change.fields)
    ask.dry_run_note(dry_run=change.dry_run)
    if not change.dry_run:
        chat(f"The trust rule {name} is gone.")


@trust.command(epilog="Ends with exit code 10 when the token does not match.")
@click.argument("name")
@click.option("--token-file", required=True, metavar="FILE", help='A job\'s identity token ("-" for standard input).')
@formatted
@remote
def test(wire: Wire, out: Output, name: str, token_file: str) -> int:
    """Say claim by claim what the rule NAME makes of a token; nothing is opened or used up."""
    token = files.take(token_file, MAX_TOKEN, "identity token").strip()
    try:
        text = token.decode("ascii")
    except UnicodeDecodeError:
        raise Refusal("TOKEN_MALFORMED", "The file does not hold an identity token.", Exit.USAGE) from None
    answer = wire.ask("trust", "TestTrustRule", name=name, identity_token=text)
    out.many("finding", [record(one) for one in answer.findings], ("name", "passed", "expected", "found"))
    return int(Exit.OK if answer.matched else Exit.FINDINGS)


def _rule(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The request's rule: what the file says, and over it what the options say."""
    rule = rule_file.rule(given["file"]) if given["file"] else {}
    options = {each: given[each] for each in ("preset", "issuer", "audience", "pipeline", "max_session", "single_use")}
    rule |= {each: value for each, value in options.items() if value is not None}
    if given["issuer_ca_file"]:
        rule["ca_pem"] = certificates.certificates(given["issuer_ca_file"], "CA file")
    certificates.held_back(rule.get("ca_pem", ""), "rule's ca_pem")
    listed = rule.pop("match", [])
    matchers = _options(given["exact"], given["globs"], given["contains"]) or listed
    if not rule.get("preset"):
        raise click.UsageError(
            "A rule is given whole, in a file or in options: say at least --preset, --issuer, --audience, --pipeline "
            "and --match."
        )
    return {
        "single_use": rule["preset"] != PRESENTED_AGAIN,
        **rule,
        "name": name,
        "preset": wire_name("PRESET", rule.get("preset")),
        "max_session": {"seconds": rule.get("max_session", 3600)},
        "matchers": matchers,
    }


def _options(exact: tuple[str, ...], globs: tuple[str, ...], contained: tuple[str, ...]) -> list[dict[str, Any]]:
    values: dict[str, list[str]] = {}
    for pair in exact:
        claim, value = _pair(pair, "--match")
        values.setdefault(claim, []).append(value)
    found = [rule_file.matcher(claim, chosen) for claim, chosen in values.items()]
    found += [{"claim": claim, "glob": value} for claim, value in (_pair(pair, "--glob") for pair in globs)]
    return found + [
        {"claim": claim, "contains": one} for claim, one in (_pair(each, "--contains") for each in contained)
    ]


def _pair(text: str, option: str) -> tuple[str, str]:
    claim, equals, value = text.partition("=")
    if not claim or not equals or not value:
        raise click.BadParameter("Write CLAIM=VALUE.", param_hint=option)
    return claim, value


def _shown(rule: Any) -> dict[str, Any]:
    """The rule with its matchers as a file would have them."""
    found = record(rule)
    found["match"] = {one.claim: _condition(one) for one in rule.matchers}
    del found["matchers"]
    return found


def _condition(matcher: Any) -> Any:
    if matcher.HasField("one_of"):
        return list(matcher.one_of.values)
    kind = matcher.WhichOneof("kind")
    return {kind: getattr(matcher, kind)} if kind in {"glob", "contains"} else matcher.exact
