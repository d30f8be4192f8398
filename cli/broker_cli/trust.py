"""``broker trust``: which CI identity becomes which pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from broker_cli import ask, certificates, files, values
from broker_cli.nouns import Noun
from broker_cli.output import Output, formatted
from broker_cli.refusal import Exit, Refusal
from broker_cli.screen import chat
from broker_cli.wire import Change, Wire, changing, remote
from broker_cli.words import PRESETS, record, wire_name

MAX_RULE = 128 * 1024
MAX_TOKEN = 64 * 1024
COLUMNS = ("name", "grade", "preset", "issuer", "pipeline", "audience")
FIELDS = frozenset({"name", "preset", "issuer", "audience", "pipeline", "max_session", "single_use", "ca_pem", "match"})


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
        click.option("--max-session", type=values.Span(60, 86_400), metavar="SPAN", help="1h (3600), unless said."),
        click.option("--single-use/--reusable", default=None, help="Each token opens one session; the default."),
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
    rule = _from_file(given["file"]) if given["file"] else {}
    options = {each: given[each] for each in ("preset", "issuer", "audience", "pipeline", "max_session", "single_use")}
    rule |= {each: value for each, value in options.items() if value is not None}
    if given["issuer_ca_file"]:
        rule["ca_pem"] = certificates.certificates(given["issuer_ca_file"], "CA file")
    certificates.held_back(rule.get("ca_pem", ""), "rule's ca_pem")
    matchers = _options(given["exact"], given["globs"]) or _listed(rule.pop("match", {}))
    rule.pop("match", None)
    if not rule.get("preset"):
        raise click.UsageError(
            "A rule is given whole, in a file or in options: say at least --preset, --issuer, --audience, --pipeline "
            "and --match."
        )
    return {
        "single_use": True,
        **rule,
        "name": name,
        "preset": wire_name("PRESET", rule.get("preset")),
        "max_session": {"seconds": rule.get("max_session", 3600)},
        "matchers": matchers,
    }


def _options(exact: tuple[str, ...], globs: tuple[str, ...]) -> list[dict[str, Any]]:
    values: dict[str, list[str]] = {}
    for pair in exact:
        claim, value = _pair(pair, "--match")
        values.setdefault(claim, []).append(value)
    found = [_matcher(claim, chosen) for claim, chosen in values.items()]
    return found + [{"claim": claim, "glob": value} for claim, value in (_pair(pair, "--glob") for pair in globs)]


def _pair(text: str, option: str) -> tuple[str, str]:
    claim, equals, value = text.partition("=")
    if not claim or not equals or not value:
        raise click.BadParameter("Write CLAIM=VALUE.", param_hint=option)
    return claim, value


def _listed(match: Any) -> list[dict[str, Any]]:
    """A file's ``match``: a text is exact, a list is a choice, ``{glob: PATTERN}`` is a pattern."""
    if not isinstance(match, dict):
        raise _bad_rule("match is a mapping of claims")
    return [_entry(str(claim), value) for claim, value in match.items()]


def _entry(claim: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict) and set(value) == {"glob"} and isinstance(value["glob"], str):
        return {"claim": claim, "glob": value["glob"]}
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(one, str | int) for one in values):
        raise _bad_rule("a claim is matched by a text, a list of texts, or {glob: PATTERN}")
    # YAML and TOML read true and 42 as what they are; a claim of that value is written the same way.
    return _matcher(claim, [str(one).lower() if isinstance(one, bool) else str(one) for one in values])


def _matcher(claim: str, values: list[str]) -> dict[str, Any]:
    if len(values) == 1:
        return {"claim": claim, "exact": values[0]}
    return {"claim": claim, "one_of": {"values": values}}


def _from_file(file: str) -> dict[str, Any]:
    import tomllib  # noqa: PLC0415  only when a file is given

    import yaml  # noqa: PLC0415

    raw = files.take(file, MAX_RULE, "trust rule")
    try:
        text = raw.decode()
        found = tomllib.loads(text) if Path(file).suffix == ".toml" else yaml.safe_load(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, yaml.YAMLError, RecursionError):
        raise _bad_rule("the file is neither YAML nor TOML") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise _bad_rule("the file is a mapping")
    if unknown := sorted(found.keys() - FIELDS):
        raise _bad_rule(f"{unknown[0][:40]} is none of {', '.join(sorted(FIELDS))}")
    _check_kinds(found)
    return {name: value for name, value in found.items() if name != "name"}


def _check_kinds(found: dict[str, Any]) -> None:
    kinds: dict[str, type] = {"max_session": int, "single_use": bool, "match": dict}
    for name, value in found.items():
        if type(value) is not kinds.get(name, str):
            raise _bad_rule(f"{name} is a {kinds.get(name, str).__name__}")
    if found.get("preset", "generic") not in PRESETS:
        raise _bad_rule(f"preset is one of {', '.join(PRESETS)}")


def _bad_rule(what: str) -> Refusal:
    return Refusal("TRUST_RULE_FILE", f"The trust rule cannot be read: {what}.", Exit.USAGE)


def _shown(rule: Any) -> dict[str, Any]:
    """The rule with its matchers as a file would have them."""
    found = record(rule)
    found["match"] = {one.claim: _condition(one) for one in rule.matchers}
    del found["matchers"]
    return found


def _condition(matcher: Any) -> Any:
    if matcher.HasField("one_of"):
        return list(matcher.one_of.values)
    return {"glob": matcher.glob} if matcher.HasField("glob") else matcher.exact
