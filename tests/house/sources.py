"""The project's modules, read once a process for all the rules of the house."""

from __future__ import annotations

import ast
import gc
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@cache
def modules(*folders: str) -> tuple[Path, ...]:
    """Every Python file below these folders, folder by folder."""
    return tuple(file for folder in folders for file in sorted((ROOT / folder).rglob("*.py")))


def parsed(file: Path) -> ast.Module:
    """For who looks at a file once: kept, a million nodes would be gone through by every later garbage collection.

    No collection while a tree grows, which holds no cycle: they would cost three times as much as to parse it.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(file.read_text(encoding="utf-8"), str(file))
    finally:
        if collecting:
            gc.enable()


@cache
def tree(file: Path) -> ast.Module:
    return parsed(file)


@cache
def nodes(file: Path) -> tuple[ast.AST, ...]:
    """As ``ast.walk`` gives them."""
    return tuple(ast.walk(tree(file)))


def place(file: Path) -> str:
    return str(file.relative_to(ROOT))


def dotted(node: ast.expr) -> str:
    """A name as it is written; what is no name, such as the answer of a call, is left out of it."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def definitions(module: ast.Module) -> Iterator[Definition]:
    """Every function and class, however deep; expressions, which hold none, are not gone into."""
    waiting: list[ast.AST] = [module]
    while waiting:
        node = waiting.pop()
        for block in BLOCKS:
            inner = getattr(node, block, None)
            waiting += inner if isinstance(inner, list) else []
        if isinstance(node, Definition):
            yield node
