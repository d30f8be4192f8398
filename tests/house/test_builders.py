"""What tests are made of is made in one place each, so that what a noun takes is told once."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")}
ALONE = {"Operations": "tests/fakes/background.py", "Sealing": "tests/unit/secrets/test_sealing.py"}
"""What is no noun, and has a test or a pace of its own."""


def calls_of(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id


def nouns() -> set[str]:
    """The classes that ``broker.nouns`` makes."""
    made = {name for name in calls_of((ROOT / "broker/nouns.py").read_text(encoding="utf-8")) if name[0].isupper()}
    return made - {"Slots"}  # a lock that stands on nothing


def callers(names: set[str]) -> set[tuple[str, str]]:
    """Which of these is called by name, and where."""
    return {
        (name, place)
        for place, text in TESTS.items()
        if any(f"{name}(" in text for name in names)
        for name in calls_of(text)
        if name in names
    }


def test_nouns_are_made_as_the_app_makes_them() -> None:
    assert {"Keys", "Imports", "Sessions", "Targets", "TrustRules"} <= nouns()
    assert callers(nouns()) == set(ALONE.items())


def test_calls_are_made_by_one_builder() -> None:
    users = {place for place, text in TESTS.items() if "broker.core.call import" in text and "Call" in text}
    assert {place for _, place in callers({"Call"})} & users == {"tests/fakes/calls.py"}


def test_what_must_be_refused_is_said_by_one_function() -> None:
    defined = {
        place
        for place, text in TESTS.items()
        if re.search(r"def _*(?:refused|refusal|refuses|reason)_*\(", text)
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name.strip("_") in {"refused", "refusal", "refuses", "reason"}
    }
    assert defined == {"tests/fakes/refusals.py"}
