"""Every command that a refusal tells people to run is one, with its options."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
from broker_cli.main import cli
from broker_cli.server import ServerCommand

from broker.__main__ import parser
from tests.house.sources import modules, nodes, place

COMMAND = re.compile(r"""[`'"]((?:python -m )?broker(?: [^`'"]+)?)[`'"]""")
STANDS_FOR = "x"
ELLIPSIS = {"…", "..."}


def text_of(node: ast.AST) -> str:
    """What an expression says, as far as it is written here; one word stands for each part that is not."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(each) if isinstance(each, ast.Constant) else STANDS_FOR for each in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    return ""


def sentences(source: Path) -> Iterator[tuple[int, str]]:
    """Every text of a module but its docstrings, whose line is that of a statement."""
    docs = {id(one.value) for one in nodes(source) if isinstance(one, ast.Expr)}
    within = {id(part) for one in nodes(source) if isinstance(one, ast.JoinedStr) for part in ast.walk(one)}
    for node in (one for one in nodes(source) if isinstance(one, ast.expr)):
        whole = isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and id(node) not in within)
        if whole and id(node) not in docs and (text := text_of(node)):
            yield node.lineno, text


@cache
def advice() -> dict[str, str]:
    """Every command that a text names, and a place where it does."""
    return {
        command: f"{place(source)}:{line}"
        for source in modules("broker", "cli")
        for line, text in sentences(source)
        for command in COMMAND.findall(text)
    }


def test_commands_are_found_in_the_texts() -> None:
    assert len(advice()) > 60
    assert {command.split()[1] for command in advice() if " " in command} >= {"key", "secret", "init", "doctor"}


def test_a_command_that_a_refusal_names_is_one() -> None:
    for command, where in advice().items():
        refuse_unless_it_is_one(command, where)


def refuse_unless_it_is_one(command: str, where: str) -> None:
    words = [word for word in re.sub(r"^python -m broker|^broker", "", command).split() if word not in ELLIPSIS]
    if command.startswith("python -m"):
        refuse_unknown_server_options(words)
        return
    found: click.Command = cli
    context = click.Context(cli, info_name="broker")
    while isinstance(found, click.Group) and words and not words[0].startswith("-"):
        inner = found.get_command(context, words.pop(0))
        assert inner is not None, f"{where}: there is no {command}"
        found, context = inner, click.Context(inner, parent=context, info_name=inner.name)
    if isinstance(found, ServerCommand):
        refuse_unknown_server_options([str(found.name), *words])
        return
    known = {name: each for each in found.params for name in (*each.opts, *each.secondary_opts)}
    arguments = sum(1 for each in found.params if isinstance(each, click.Argument))
    plain = 0
    for before, word in zip(["", *words], words, strict=False):
        if word.startswith("--"):
            assert word.split("=")[0] in known, f"{where}: {command} has no {word}"
        elif not takes_value(known.get(before)):
            plain += 1
    variadic = any(isinstance(each, click.Argument) and each.nargs < 0 for each in found.params)
    assert plain <= arguments or variadic, f"{where}: {command} takes fewer words"


def takes_value(option: click.Parameter | None) -> bool:
    """Whether the word behind it belongs to it."""
    return isinstance(option, click.Option) and not option.is_flag


def actions(of: argparse.ArgumentParser) -> list[argparse.Action]:
    return of._actions  # noqa: SLF001 - argparse lists its arguments nowhere else


def refuse_unknown_server_options(words: list[str]) -> None:
    """As argparse sees it; what a sentence leaves out of a command is not asked for here."""
    name, *rest = words
    (choices,) = (each.choices for each in actions(parser()) if isinstance(each.choices, dict))
    assert name in choices
    options = {option for each in actions(choices[name]) for option in each.option_strings}
    assert [word for word in rest if word.startswith("--") and word.split("=")[0] not in options] == []
