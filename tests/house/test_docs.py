"""What the documents claim and could stop being true."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest
from broker_cli.main import cli
from broker_cli.server import ServerCommand

from broker import config
from broker.__main__ import parser
from broker.targets.vault.policy import deleting, policy

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
THREATS = (ROOT / "docs/threat-model.md").read_text(encoding="utf-8")
DOCS = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(kind: str) -> list[str]:
    """The README's fenced blocks of a language, without their indentation."""
    fenced = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", README, re.MULTILINE | re.DOTALL)
    return [re.sub(r"(?m)^ {3}", "", text) for language, text in fenced if language == kind]


def commands(text: str) -> set[str]:
    """The broker's own command lines in the fenced blocks that name no language."""
    fenced = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for language, block in fenced if not language for line in block.splitlines()]
    return {line for line in lines if line.startswith("broker ")}


COMMANDS = sorted({line for path in DOCS for line in commands(path.read_text(encoding="utf-8"))})


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_documents_is_one(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    words = words[: next((at for at, word in enumerate(words) if word in {">", "|", "--"}), len(words))]
    command: click.Command = cli
    context = click.Context(cli, info_name="broker")
    while isinstance(command, click.Group):
        found = command.get_command(context, words.pop(0))
        assert found is not None, line
        command, context = found, click.Context(found, parent=context, info_name=found.name)
    if isinstance(command, ServerCommand):
        assert parser().parse_args([str(command.name), *words])
        return
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert [word for word in words if word.startswith("--") and word.split("=")[0] not in known] == []


def test_a_make_command_of_the_documents_is_one() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*##", makefile, re.MULTILINE))
    texts = [path.read_text(encoding="utf-8") for path in DOCS]
    named = {name for text in texts for name in re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)}
    assert named
    assert named <= targets


def test_the_configuration_of_the_readme_is_accepted(tmp_path: Path) -> None:
    (example,) = blocks("toml")
    file = tmp_path / "broker.toml"
    file.write_text(example, encoding="utf-8")
    loaded = config.load(file)
    assert set(tomllib.loads(example)) <= set(type(loaded).model_fields)


def test_the_vault_policy_of_the_readme_is_the_one_that_the_broker_needs() -> None:
    example, deletes = blocks("hcl")
    assert example.split("\n") == policy("transit").split("\n")
    assert deletes.split() == deleting("transit").split()


def test_every_link_of_the_documents_leads_somewhere() -> None:
    broken = [
        f"{path.name}: {link}"
        for path in DOCS
        for link in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
        if not link.startswith("https://") and not (path.parent / link).exists()
    ]
    assert broken == []


FILES = re.compile(r"`((?:broker|cli|protos|softhsm|tests)/[\w./]+|(?:auth|core|rpc|store|targets)/[\w./]+)`")
BASES = ("", "broker/", "broker/core/")
NO_FILE = {"broker/background", "broker/engines"}
"""A principal's name, and a folder that is to come."""


def test_every_file_that_the_documents_name_is_there() -> None:
    named = {(path.name, file) for path in DOCS for file in FILES.findall(path.read_text(encoding="utf-8"))}
    assert len(named) > 60
    files = {(page, file) for page, file in named if file not in NO_FILE and not re.search(r"/[A-Z]+(?:[./]|$)", file)}
    lost = {
        (page, file)
        for page, file in files
        if not any((ROOT / f"{base}{file}{end}").exists() for base in BASES for end in ("", ".py"))
    }
    assert lost == set()


def test_every_threat_has_a_test_or_is_accepted() -> None:
    lines = [line for line in THREATS.splitlines() if re.match(r"\| [A-Z]-\d", line)]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert len(rows) >= 25
    assert [row[0] for row in rows if len(row) != 9 or not all(row)] == []
    ids = [row[0] for row in rows]
    assert ids == sorted(ids, key=lambda one: ("KIOPASTCB".index(one[0]), int(one[2:])))
    assert len(ids) == len(set(ids))
    tests = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    written = {
        f"{group}-{number}"
        for text in tests
        for name in re.findall(r"def test_(\w+)", text)
        for group, number in re.findall(r"([A-Z]{1,2})_(\d\d)(?=_)", name)
    }
    written |= {promise for text in tests for promise in re.findall(r"def test_(P\d{1,2})_", text)}
    named = {(row[0], name) for row in rows for name in row[6].split(", ") if name != "accepted"}
    assert sorted(pair for pair in named if pair[1] not in written) == []


def test_the_changelog_begins_with_what_is_not_released_yet() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.+?)\]", changes, re.MULTILINE)[0] == "Unreleased"
