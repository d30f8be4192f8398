"""Of a test that is ``sampled`` each run has a few cases, which its seed chooses, and the soak has them all.

Each run of several processes shows that they have the same: they refuse to go on with different ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

CASES = """
import pytest

@pytest.mark.sampled(3)
@pytest.mark.parametrize("number", range(40))
def test_many(number): ...

@pytest.mark.sampled(1, each="store")
@pytest.mark.parametrize("number", range(20))
@pytest.mark.parametrize("store", ["one", "other"])
def test_each(store, number): ...

@pytest.mark.parametrize("number", range(4))
def test_all(number): ...
"""
INI = """
[pytest]
addopts = --strict-markers -m 'not soak'
markers =
  soak: long
  row(id): named after
  sampled(most, each): some
"""
RUNS = """
import json, sys
import pytest
from tests import conftest

class Sampling:
    pytest_collection_modifyitems = staticmethod(conftest.pytest_collection_modifyitems)

    def pytest_collection_finish(self, session):
        found.append([item.name for item in session.items])

found = []
for arguments in json.loads(sys.argv[1]):
    assert pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", *arguments], plugins=[Sampling()]) == 0
sys.stderr.write(json.dumps(found))
"""


def collected(folder: Path, *runs: list[str]) -> list[set[str]]:
    """The cases that each of these runs of pytest in the folder has."""
    told = subprocess.run(
        [sys.executable, "-c", RUNS, json.dumps(runs)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    assert told.returncode == 0, told.stdout + told.stderr
    return [set(run) for run in json.loads(told.stderr.splitlines()[-1])]


def of(test: str, cases: set[str]) -> int:
    return sum(case.startswith(f"{test}[") for case in cases)


def test_a_sample_is_the_seeds_and_who_asks_for_all_has_all(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text(INI)
    (tmp_path / "test_cases.py").write_text(CASES)
    seed = "--randomly-seed={}".format
    first, again, another, soak, by_name, by_word = collected(
        tmp_path,
        [seed(7)],
        [seed(7)],
        [seed(8)],
        ["-m", "soak or hypothesis"],
        ["test_cases.py::test_many[5]", "test_cases.py::test_each"],
        ["-k", "test_many"],
    )
    for run in (first, another):
        assert (of("test_many", run), of("test_all", run)) == (3, 4)
        stores = sorted(case.partition("-")[0] for case in run if case.startswith("test_each"))
        assert stores == ["test_each[one", "test_each[other"]
    assert first == again
    assert first != another
    assert (of("test_many", soak), of("test_each", soak), of("test_all", soak)) == (40, 40, 0)
    assert (of("test_many", by_name), of("test_each", by_name)) == (1, 40)
    assert len(by_word) == 40
