"""The size of the rooms and the words on their doors."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.house.sources import ROOT, definitions, modules, parsed, place

ROOMS = ("broker", "cli", "softhsm", "tests")
VAGUE = {
    "base", "common", "data", "dto", "handler", "handlers", "helper", "helpers", "info", "manager", "managers", "misc",
    "service", "services", "util", "utils",
}  # fmt: skip


def words(name: str) -> set[str]:
    """The words of a snake_case or CamelCase name, lower-case."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", name)}


def is_servicer(node: ast.ClassDef) -> bool:
    """A class that implements a proto service, whose name is the wire's."""
    return any(ast.unparse(base).endswith("Servicer") for base in node.bases)


def vague_classes(module: ast.Module) -> Iterator[str]:
    for node in definitions(module):
        if isinstance(node, ast.ClassDef) and words(node.name) & VAGUE and not is_servicer(node):
            yield f"line {node.lineno}: class {node.name}"


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The length of a function without its docstring."""
    length = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        length -= (first.end_lineno or first.lineno) - first.lineno + 1
    return length


def long_functions(module: ast.Module) -> Iterator[str]:
    for node in definitions(module):
        if not isinstance(node, ast.ClassDef) and code_lines(node) > 40:
            yield f"line {node.lineno}: {node.name} has {code_lines(node)} lines"


def faults(path: Path) -> Iterator[str]:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    if lines > 400:
        yield f"{lines} lines"
    if words(path.stem) & VAGUE:
        yield f"the name {path.stem}"
    module = parsed(path)
    yield from (*long_functions(module), *vague_classes(module))


def test_a_module_is_small_and_says_what_it_is() -> None:
    found = {place(path): list(faults(path)) for path in modules(*ROOMS)}
    assert len(found) > 500
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_the_rules_above_see_what_they_forbid() -> None:
    body = "\n".join(f"    x = {number}" for number in range(40))
    assert list(long_functions(ast.parse(f"def f():\n{body}"))) == ["line 1: f has 41 lines"]
    assert list(vague_classes(ast.parse("class KeyManager: ..."))) == ["line 1: class KeyManager"]
    hidden = (
        "try: ...\nexcept E:\n    match x:\n        case 1:\n            with y:\n                class AnyInfo: ..."
    )
    assert list(vague_classes(ast.parse(hidden))) == ["line 6: class AnyInfo"]
    assert list(vague_classes(ast.parse("class KeyService(pb.KeyServiceServicer): ..."))) == []
    assert words("HSMUtils_info") == {"hsm", "utils", "info"}


MACHINE_PATHS = re.compile("|".join(["/" + "work/", "/" + "tmp/", "/" + "home/", "/" + "Users/"]))
WRITTEN = ("*.py", "*.toml", "*.proto", "*.c", "*.h", "*.sh", "*.md", "*.yaml", "Makefile", "run")


def written_files() -> Iterator[Path]:
    yield from (path for path in ROOT.iterdir() if path.is_file() and any(path.match(kind) for kind in WRITTEN))
    for room in (*ROOMS, "protos", "docs", ".ci"):
        yield from (path for kind in WRITTEN for path in (ROOT / room).rglob(kind) if path.is_file())


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    found = [
        f"{place(path)}:{number}"
        for path in written_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if MACHINE_PATHS.search(line)
    ]
    assert found == []
