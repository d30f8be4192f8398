"""One way to each effect: whatever changes the store for a caller is decided on first, and nothing stored is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.house.sources import dotted, modules, nodes, place, tree

DECIDES = {"check", "permits", "check_all"}
BACKGROUND = {"chores", "ensure", "refresh", "flush_reads", "sign_due"}
"""The broker's own work: it has no caller, and no RPC calls it."""

WRITES = {"once", "last_write"}
"""What opens a write for a noun (``core.once``)."""

RUNS = {"eval", "exec", "compile", "__import__"}
UNSAFE = {"pickle", "marshal", "shelve", "jinja2", "mako", "dill", "runpy", "code", "codeop"}


def events(method: ast.FunctionDef, methods: dict[str, ast.FunctionDef], seen: frozenset[str] = frozenset()) -> str:
    """What the method does, in order: "d" decides, "w" writes; methods of its own class are gone into."""
    calls = [node for node in ast.walk(method) if isinstance(node, ast.Call)]
    done = ""
    for call in sorted(calls, key=lambda node: (node.end_lineno, node.end_col_offset)):
        owner, _, name = dotted(call.func).rpartition(".")
        if owner.endswith("_guard") and name in DECIDES:
            done += "d"
        elif (owner.endswith("_store") and name == "write") or (not owner and name in WRITES):
            done += "w"
        elif owner == "self" and name in methods and name not in seen:
            done += events(methods[name], methods, seen | {name})
    return done


def nouns() -> Iterator[tuple[str, dict[str, ast.FunctionDef]]]:
    """Each class of the core that decides, with its methods."""
    for file in modules("broker/core"):
        for one in tree(file).body:
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
        f"{place(file)}:{node.lineno}"
        for file in modules("broker/rpc", "broker/auth")
        for node in nodes(file)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in forbidden
    }
    assert found == set()


def test_AZ_18_nothing_that_is_stored_or_sent_is_evaluated() -> None:
    found = set()
    for file in modules("broker", "cli"):
        for node in nodes(file):
            if isinstance(node, ast.Call):
                called = dotted(node.func)
                plain = {"yaml.safe_load", "yaml.safe_dump", "yaml.parse"}  # the last makes events, and no values
                loads = called.startswith("yaml.") and called not in plain
                if called in RUNS or loads or called.endswith(".format_map"):
                    found.add(f"{place(file)}:{node.lineno} {called}")
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name.partition(".")[0] for alias in node.names}
                names |= {(node.module or "").partition(".")[0]} if isinstance(node, ast.ImportFrom) else set()
                found |= {f"{place(file)}:{node.lineno} {name}" for name in names & UNSAFE}
    assert found == set()
