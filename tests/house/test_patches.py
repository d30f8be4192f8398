"""Tests look at the product from outside: where one reaches inside, the line says why nothing else would do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
PATCHES = {"setattr", "delattr", "setitem", "delitem"}
"""What pytest's ``MonkeyPatch`` has for putting something in the place of what is there; not for the environment."""

PATCH = re.compile(rf"\.({'|'.join(PATCHES)})\(")
OVERRIDES = re.compile(r"# type: ignore\[[^]]*method-assign")
INSIDE = re.compile(r"# noqa: [A-Z0-9, ]*SLF001(?P<why>.*)")
IMPORTED = re.compile(r"^ *from broker(?:_cli)?\b\S* import (\([^)]*\)|.*)", re.MULTILINE)
"""From the product; ruff does not look at these."""


def explained(lines: list[str], at: int) -> bool:
    """Whether a comment of words is above the line, or at its end."""
    here = re.sub(r"# type: ignore\[[^]]*\]", "", lines[at])
    return lines[at - 1].strip().startswith("# ") or " # " in here


def silent(lines: list[str]) -> Iterator[int]:
    """The places where the module reaches inside without a word."""
    for at, line in enumerate(lines):
        patched = PATCH.search(line) or OVERRIDES.search(line)
        inside = INSIDE.search(line)
        if (patched and not explained(lines, at)) or (inside and not re.match(r" - \w", inside["why"])):
            yield at + 1


def private_names(text: str) -> list[str]:
    return [name for names in IMPORTED.findall(text) for name in re.findall(r"\b_[^\W_]\w*", names)]


MODULES = {source.relative_to(TESTS): source.read_text(encoding="utf-8") for source in sorted(TESTS.rglob("*.py"))}


def test_who_reaches_inside_says_why() -> None:
    assert [f"{path}:{line}" for path, text in MODULES.items() for line in silent(text.splitlines())] == []


def test_no_private_name_is_imported() -> None:
    assert {str(path): found for path, text in MODULES.items() if (found := private_names(text))} == {}


@pytest.mark.parametrize(("line", "above", "found"), [
    ("patch.%s(a, 'b', 1)", "", [2]),
    ("patch.%s(a, 'b', 1)", "# Because.", []),
    ("patch.%s(a, 'b', 1)  # because", "", []),
    ("a.b = c  # type: ignore[method-%s]", "", [2]),
    ("a.b = c  # type: ignore[method-%s]", "    # Because.", []),
    ("a._b  # noqa: SLF%s", "# Because.", [2]),
    ("a._b  # noqa: SLF%s - because", "", []),
])  # fmt: skip
def test_what_is_looked_for_is_found(line: str, above: str, found: list[int]) -> None:
    word = "001" if "noqa" in line else "assign" if "ignore" in line else "setattr"
    assert list(silent([above, line % word])) == found


def test_private_names_are_found_in_every_form_of_import() -> None:
    text = "from broker.a import b, _c\nfrom broker_cli.x import (\n    y,\n    _z,\n)\nfrom broker import __main__\n"
    assert private_names(text) == ["_c", "_z"]
