"""One way to each effect: whatever changes the store for a caller is decided on first, and nothing stored is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DECIDES = {"check", "permits", "check_all"}
BACKGROUND = {"chores", "ensure", "refresh", "flush_reads", "sign_due"}
"""The broker's own work: it has no caller, and no RPC calls it."""

RUNS = {"eval", "exec", "compile", "__import__"}
UNSAFE = {"pickle", "marshal", "shelve", "jinja2", "mako", "dill", "runpy", "code", "codeop"}


def trees(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            yield file, ast.parse(file.read_text(), str(file))


def events(method: ast.FunctionDef, methods: dict[str, ast.FunctionDef], seen: frozenset[str] = frozenset()) -> str:
    """What the method does, in order: "d" decides, "w" writes; methods of its own class are gone into."""
    calls = [node for node in ast.walk(method) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    done = ""
    for call in sorted(calls, key=lambda node: (node.end_lineno, node.end_col_offset)):
        function = call.func
        assert isinstance(function, ast.Attribute)
        owner, name = ast.unparse(function.value), function.attr
        if owner.endswith("_guard") and name in DECIDES:
            done += "d"
        elif owner.endswith("_store") and name == "write":
            done += "w"
        elif owner == "self" and name in methods and name not in seen:
            done += events(methods[name], methods, seen | {name})
    return done


def nouns() -> Iterator[tuple[str, dict[str, ast.FunctionDef]]]:
    """Each class of the core that decides, with its methods."""
    for file, tree in trees("broker/core"):
        for one in tree.body:
            if isinstance(one, ast.ClassDef):
                methods = {each.name: each for each in one.body if isinstance(each, ast.FunctionDef)}
                if "self._guard = " in ast.unparse(one):
                    yield f"{file.stem}.{one.name}", methods


def test_AZ_07_every_method_that_changes_the_store_decides_before_it() -> None:
    changing = {}
    for noun, methods in nouns():
        for name, method in methods.items():
            done = events(method, methods, frozenset({name}))
            if not name.startswith("_") and "w" in done and name not in BACKGROUND:
                changing[f"{noun}.{name}"] = done
    assert len(changing) > 25, sorted(changing)
    assert {name: done for name, done in changing.items() if not done.startswith("d")} == {}


def test_AZ_07_no_edge_writes_to_the_store_or_does_the_background_loops_work() -> None:
    forbidden = {"write"} | BACKGROUND - {"refresh"}
    found = {
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file, tree in trees("broker/rpc", "broker/auth")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in forbidden
    }
    assert found == set()


def test_AZ_18_nothing_that_is_stored_or_sent_is_evaluated() -> None:
    found = set()
    for file, tree in trees("broker", "cli"):
        for node in ast.walk(tree):
            place = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                plain = {"yaml.safe_load", "yaml.safe_dump", "yaml.parse"}  # the last makes events, and no values
                loads = called.startswith("yaml.") and called not in plain
                if called in RUNS or loads or called.endswith(".format_map"):
                    found.add(f"{place} {called}")
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name.partition(".")[0] for alias in node.names}
                names |= {(node.module or "").partition(".")[0]} if isinstance(node, ast.ImportFrom) else set()
                found |= {f"{place} {name}" for name in names & UNSAFE}
    assert found == set()
