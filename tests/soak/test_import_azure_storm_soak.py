"""The long form of the imports to Azure in a storm."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.live.imports.test_azure_storm import weather


@pytest.mark.soak
def test_BY_06_BY_09_BY_15_a_thousand_imports_in_a_storm_leave_one_right_version_each(tmp_path: Path) -> None:
    assert "restarts" in weather(tmp_path, 1000, 1, hang=True)
