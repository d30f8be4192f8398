"""Every refusal has a reason that is a member, is of the kind that the reason declares, and says what it should."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache

from broker.core import errors
from broker.core.errors import BrokerError, Outcome
from broker.core.meanings import meanings
from broker.core.reasons import Reason, Says
from tests.house import errors_page
from tests.house.sources import dotted, modules, nodes, place

SAME_WORDS = {"broker/hsm/codes.py"}  # PKCS#11's own names for what went wrong
HANDED_ON = {
    ("broker/core/imports/places.py", "row.failure"),  # why an import did not come to its end, as it is kept
    ("broker/core/imports/steps.py", "disabled_for"),  # the same
    ("broker/core/imports/steps.py", "MISSING"),
    ("broker/core/imports/road.py", "MISSING"),
    ("broker/core/targets/keks.py", "error.reason"),
    ("broker/hsm/login.py", "refusal.reason"),
    ("broker/core/imports/reproof.py", "MISSING"),
}
SAYS = {
    Says.AGAIN: re.compile(r"\b(again|later|wait|come back)\b"),
    Says.COMMAND: re.compile(r"`broker [a-z]"),
    Says.MEND: re.compile(r".[;:,.] .|\bso\b|\bat most\b|\d to \d|^(Say|Write)\b"),
    Says.NONE: re.compile(""),
}
UNSAID = "…"
TEXTS = frozenset(Reason.__members__)

DECLARED: defaultdict[Reason, set[Outcome]] = defaultdict(set)
SAID: dict[Reason, Says] = {}
for _one in meanings():
    DECLARED[_one.reason].add(_one.outcome)
    SAID[_one.reason] = _one.says


@cache
def walked() -> dict[str, tuple[ast.AST, ...]]:
    """The broker's modules, but those that declare the reasons and the migrations."""
    return {
        place(file): nodes(file)
        for file in modules("broker")
        if file.stem not in {"reasons", "meanings"} and "migrations" not in file.parts
    }


@cache
def kinds() -> dict[str, Outcome]:
    """Every class of refusals by its name, those of the edges too."""
    found = {name: kind.outcome for name, kind in vars(errors).items() if is_kind(kind)}
    while more := {
        node.name: found[base.id]
        for inside in walked().values()
        for node in inside
        if isinstance(node, ast.ClassDef) and node.name not in found
        for base in node.bases
        if isinstance(base, ast.Name) and base.id in found
    }:
        found |= more
    return found


def is_kind(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BrokerError) and kind is not BrokerError


def made() -> Iterator[tuple[str, ast.Call, Outcome]]:
    """Every place where a refusal is made."""
    for name, inside in walked().items():
        for node in inside:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args and node.func.id in kinds():
                yield name, node, kinds()[node.func.id]


def through() -> dict[str, tuple[int, Outcome]]:
    """Functions that make a refusal with the reason that they are given: at which place they take it."""
    found = {}
    for inside in walked().values():
        for function in inside:
            if isinstance(function, ast.FunctionDef):
                taken = [each.arg for each in function.args.args if each.arg != "self"]
                for node in ast.walk(function):
                    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in kinds():
                        first = ast.unparse(node.args[0]) if node.args else ""
                        if first in taken:
                            found[function.name] = taken.index(first), kinds()[node.func.id]
    return found


def reasons(node: ast.expr) -> list[Reason]:
    """Those that an expression can be: one, or one of two."""
    if isinstance(node, ast.IfExp):
        return reasons(node.body) + reasons(node.orelse)
    named = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "Reason"
    return [Reason[node.attr]] if named and isinstance(node, ast.Attribute) else []


def text_of(node: ast.expr) -> str:
    """What an expression says as far as it is written here."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(each.value) if isinstance(each, ast.Constant) else UNSAID for each in node.values)
    return UNSAID


def test_every_reason_has_a_meaning() -> None:
    assert set(DECLARED) == set(Reason)
    assert {reason.value for reason in Reason} == set(Reason.__members__)
    assert [one for one in Reason if not re.fullmatch(r"[A-Z][A-Z0-9_]{3,62}", one)] == []
    assert [one.text for one in meanings() if not re.fullmatch(r"[A-Z].{10,100}\.", one.text)] == []


def test_every_refusal_has_a_reason_of_its_kind() -> None:
    wrong = []
    for name, call, outcome in made():
        found = reasons(call.args[0])
        written = ast.unparse(call.args[0])
        place = f"{name}:{call.lineno} {written}"
        if not found and (name, written) not in HANDED_ON and written != "reason":
            wrong.append(f"{place} is no member")
        wrong += [f"{place} is not declared for {outcome}" for one in found if outcome not in DECLARED[one]]
    assert wrong == []


def test_what_is_refused_through_a_function_is_of_its_kind() -> None:
    takers, wrong, seen = through(), [], 0
    for name, inside in walked().items():
        for node in inside:
            called = node.func if isinstance(node, ast.Call) else None
            function = str(getattr(called, "id", getattr(called, "attr", "")))
            if isinstance(node, ast.Call) and function in takers and len(node.args) > takers[function][0]:
                at, outcome = takers[function]
                for one in reasons(node.args[at]):
                    seen += 1
                    if outcome not in DECLARED[one]:
                        wrong.append(f"{name}:{node.lineno} {one} is not declared for {outcome}")
    assert wrong == []
    assert seen > 30


def test_every_reason_is_given_somewhere_and_never_as_a_text() -> None:
    used, texts = set[str](), set[str]()
    for name, inside in walked().items():
        compared = {id(part) for node in inside if isinstance(node, ast.Compare) for part in ast.walk(node)}
        for node in inside:
            if isinstance(node, ast.Attribute) and dotted(node.value) == "Reason" and id(node) not in compared:
                used.add(node.attr)
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and node.value in TEXTS
                and name not in SAME_WORDS
            ):
                texts.add(f"{name}:{node.lineno} {node.value}")
    assert used == set(Reason.__members__)
    assert texts == set()


def test_what_the_command_line_looks_for_is_given() -> None:
    found = [node for file in modules("cli") for node in nodes(file)]
    looked_for = {
        str(one.value)
        for node in found
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute) and node.left.attr == "reason"
        for one in node.comparators
        if isinstance(one, ast.Constant)
    }
    its_own = {
        str(node.args[0].value)
        for node in found
        if isinstance(node, ast.Call) and dotted(node.func) == "Refusal" and isinstance(node.args[0], ast.Constant)
    }
    assert looked_for
    assert looked_for - its_own <= TEXTS


def test_every_sentence_says_what_its_reason_promises() -> None:
    silent = [
        f"{name}:{call.lineno} {one} does not say {SAID[one].value}: {said}"
        for name, call, _ in made()
        for said in [text_of(call.args[1]) if len(call.args) > 1 else UNSAID]
        for one in reasons(call.args[0])
        if UNSAID not in said and not SAYS[SAID[one]].search(said)
    ]
    assert silent == []


def test_the_page_of_the_refusals_is_fresh() -> None:
    assert errors_page.PAGE.read_text(encoding="utf-8") == errors_page.page()
