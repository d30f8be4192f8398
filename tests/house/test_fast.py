"""What is in tests/unit needs no token, no server and no other broker: `make fast` runs it anywhere, in no time."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from tests.house.sources import definitions, dotted, modules, parsed, place

ASKS = {"usefixtures", "getfixturevalue"}
STARTS_PYTHON = {"tests/unit/policy/test_policy.py"}  # to see the engine of the policies overflow its stack


def is_fixture(node: ast.FunctionDef) -> bool:
    named = (each.func if isinstance(each, ast.Call) else each for each in node.decorator_list)
    return "pytest.fixture" in map(dotted, named)


def fixtures(within: Sequence[ast.AST]) -> set[str]:
    """Those that a module defines."""
    return {node.name for node in within if isinstance(node, ast.FunctionDef) and is_fixture(node)}


def asked(within: Sequence[ast.AST]) -> Iterator[str]:
    """The fixtures that the tests and fixtures of a module are given, by argument or by name."""
    for node in within:
        if isinstance(node, ast.FunctionDef) and (node.name.startswith("test_") or is_fixture(node)):
            yield from (each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs))
        elif isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] in ASKS:
            yield from (str(each.value) for each in node.args if isinstance(each, ast.Constant))


def test_no_unit_test_asks_for_a_server() -> None:
    servers_own = (file for file in modules("tests/servers") if "fixture" in file.read_text(encoding="utf-8"))
    served = {name for file in servers_own for name in fixtures(tuple(definitions(parsed(file))))}
    assert served >= {"hsm", "softhsm", "postgres", "openbao", "live", "premium"}
    found = {}
    for file in modules("tests/unit"):
        module = parsed(file)
        by_name = any(asks in file.read_text(encoding="utf-8") for asks in ASKS)
        within = tuple(ast.walk(module) if by_name else definitions(module))
        found[place(file)] = set(asked(within)) & served - fixtures(within)
    assert len(found) > 80
    assert {name: servers for name, servers in found.items() if servers} == {}


def test_no_unit_test_starts_a_broker() -> None:
    files = modules("tests/unit")
    assert {place(file) for file in files if "sys.executable" in file.read_text(encoding="utf-8")} == STARTS_PYTHON
