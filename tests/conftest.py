"""What every test can ask for: real servers, each started once on free loopback ports and stopped afterwards."""

from __future__ import annotations

import gc
import os
import random
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.servers.places import MEMORY, in_memory

# What is loaded and collected lives as long as the process: no search through it finds anything to free.
gc.disable()

# Before gRPC is loaded: its fork handlers run in a child that becomes another user, and can end it before it is there.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

# Thousands of records wait until they are on the disk, which proves nothing here: no test takes the power away.
if "TMPDIR" not in os.environ and in_memory():
    os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)

# How long an example takes says something of the machine, and of what else runs there. Each run tries other examples;
# `make soak` tries many at once.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=40)
settings.register_profile("soak", settings.get_profile("any machine"), max_examples=4000)
settings.load_profile("any machine")

TESTS = Path(__file__).parent
FAST = (TESTS / "unit", TESTS / "house")
SERVERS = [
    "tests.servers.softhsm",
    "tests.servers.shim",
    "tests.servers.postgres",
    "tests.servers.openbao",
    "tests.servers.fake_azure",
    "tests.servers.azure",
    "tests.servers.live",
    "tests.servers.live_azure",
]


def pytest_configure(config: pytest.Config) -> None:
    """Define the fixtures that start servers, unless only the fast tests are asked for: those have to do without."""
    asked = [(config.invocation_params.dir / each.partition("::")[0]).resolve() for each in config.args]
    if not all(any(each.is_relative_to(folder) for folder in FAST) for each in asked):
        for name in SERVERS:
            config.pluginmanager.import_plugin(name)


# A shell's background job is started with these ignored, and whatever it starts inherits that: the tests that send them
# would wait for ever.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Set what was made until here apart, and search only what the tests make."""
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(10_000, 10, 10)
        gc.enable()


# What a test is named after: a row of the threat model, of the faults, or of what went wrong elsewhere.
ROW = re.compile(r"(?<=_)[A-Z]{1,2}_?[0-9]{2}(?=_)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let the rows in a test's name be marks as well: ``pytest -m "row(id='HS-01')"``, or ``-m row`` for all.

    Of cases that are ``sampled`` a run has some, which its seed chooses alike in all its processes; the soak has all,
    and so has whoever names the test or asks for those that failed.
    """
    for item in items:
        for name in ROW.findall(item.name.partition("[")[0]):
            item.add_marker(pytest.mark.row(id=name.replace("_", "-")))
    named = {given.rpartition("::")[2].partition("[")[0] for given in config.args if "::" in given}
    left_out = set[str]()
    for (name, _), cases in _sampled(items).items():
        if "soak" in str(config.option.markexpr).replace("not soak", ""):
            for case in cases:
                case.add_marker("soak")
        elif name.rpartition("::")[2] not in named and not (
            config.option.keyword or config.getoption("lf", default=False)
        ):
            most = _mark(cases[0]).args[0]
            ids = sorted(case.nodeid for case in cases)  # what a value looks like as text may differ by process
            chance = random.Random(f"{config.getoption('randomly_seed', 0)} {ids}")  # noqa: S311 (no secret)
            left_out |= set(chance.sample(ids, max(0, len(ids) - most)))
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in left_out])
    items[:] = [item for item in items if item.nodeid not in left_out]


def _sampled(items: list[pytest.Item]) -> dict[tuple[str, str], list[pytest.Item]]:
    """The cases of each test that is sampled, apart for each value of the parameter that its mark names."""
    found: dict[tuple[str, str], list[pytest.Item]] = {}
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        if isinstance(item, pytest.Function) and "sampled" in marks and "soak" not in marks:
            if not hasattr(item, "callspec"):
                continue  # the mark is its module's
            value = item.callspec.params.get(_mark(item).kwargs.get("each", ""))
            found.setdefault((item.nodeid.partition("[")[0], str(value)), []).append(item)
    return found


def _mark(item: pytest.Item) -> pytest.Mark:
    mark = item.get_closest_marker("sampled")
    assert mark is not None
    return mark
