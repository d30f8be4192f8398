"""The long form of the proof that every code of the token at every call is refused or got over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.hsm.test_shim_faults import OPERATIONS, Choice, every
from tests.servers.softhsm import alone

MOST = 1800
"""Seconds for one operation: minutes, and more where other work takes the processor."""


@pytest.mark.soak
@pytest.mark.parametrize("operation", OPERATIONS)
def test_FT_15_every_code_of_the_standard_at_every_call(
    tmp_path: Path, operation: Callable[[Path, Choice], list[str]]
) -> None:
    assert alone(operation, tmp_path / "token", every, seconds=MOST) == []
