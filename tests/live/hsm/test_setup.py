"""The developer's one command, as a developer runs it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from broker.hsm.config import HsmConfig
from tests.servers.softhsm import KeysHsm, alone

_SETUP = Path(__file__).parents[3] / "softhsm" / "setup"


def _setup(folder: Path) -> str:
    return subprocess.run(
        [sys.executable, str(_SETUP), str(folder)], check=True, capture_output=True, text=True, timeout=200
    ).stdout


def _label(config: HsmConfig) -> str:
    hsm = KeysHsm(config)
    label = hsm.report().token_label
    hsm.close()
    return label


def test_setup_makes_a_token_that_the_broker_starts_on(tmp_path: Path) -> None:
    folder = tmp_path / "token"
    _setup(folder)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert "already" in _setup(folder)
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    config = HsmConfig.model_validate(tomllib.loads((folder / "hsm.toml").read_text())["hsm"])
    assert alone(_label, config) == "broker-dev"
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.rglob("*"))
