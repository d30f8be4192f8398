"""What `broker init` does where the system refuses, and where an earlier run made a token."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker import setup
from tests.servers.live import environment
from tests.servers.warm import run


@pytest.mark.parametrize(
    "arguments", [["init", "/proc/nowhere"], ["init", "FOLDER", "--operators-address", "no host:0"]]
)
def test_CL_03_what_the_system_refuses_is_said_in_a_sentence(arguments: list[str], tmp_path: Path) -> None:
    given = [str(tmp_path / "b") if each == "FOLDER" else each for each in arguments]
    done = run(tuple(given), environment=environment())
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "SYSTEM_REFUSED" in done.stderr


def test_a_set_up_that_was_interrupted_after_the_token_was_made_goes_on_with_it(tmp_path: Path) -> None:
    first = setup.softhsm_token(tmp_path)
    pin = first.pin_file.read_text()
    tokens = sorted(file.name for file in (tmp_path / "softhsm" / "tokens").iterdir())
    again = setup.softhsm_token(tmp_path)
    assert (again.environment, again.pin_file.read_text()) == (first.environment, pin)
    assert sorted(file.name for file in (tmp_path / "softhsm" / "tokens").iterdir()) == tokens
