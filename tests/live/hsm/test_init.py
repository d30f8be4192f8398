"""`init` on a token of one's own: how to find that again is kept, and one that is no good for a broker is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from broker.hsm.config import HsmConfig
from tests.servers.softhsm import make_token
from tests.servers.warm import run


def broker(config: HsmConfig | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in an environment of its own; without a config SOFTHSM2_CONF is not set in it."""
    environment = {name: value for name, value in os.environ.items() if name != "SOFTHSM2_CONF"}
    environment |= (config.environment if config else {}) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return run(arguments, environment=environment)


def init(folder: Path, config: HsmConfig, *more: str) -> subprocess.CompletedProcess[str]:
    of_token = ("--module", str(config.module), "--token-label", config.token_label)
    return broker(config, "init", str(folder), *of_token, "--pin-file", str(config.pin_file), *more)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A broker on a token of one's own, made with SOFTHSM2_CONF in the environment."""
    folder = tmp_path_factory.mktemp("own")
    done = init(folder / "broker", make_token(folder / "token"))
    assert done.returncode == 0, done.stderr
    return folder


def test_K05_the_environment_of_init_is_kept(made: Path) -> None:
    written = tomllib.loads((made / "broker" / "broker.toml").read_text())["hsm"]
    assert written["environment"] == {"SOFTHSM2_CONF": str(made / "token" / "softhsm2.conf")}
    checked = broker(None, "check", "--config", str(made / "broker" / "broker.toml"))
    assert checked.returncode == 0, checked.stdout
    assert "available: audit key and certificates, secrets and database, new keys, " in checked.stdout


def test_K05_a_lost_environment_is_named(made: Path) -> None:
    file = made / "without.toml"
    text = (made / "broker" / "broker.toml").read_text()
    file.write_text("".join(line for line in text.splitlines(keepends=True) if "SOFTHSM2_CONF" not in line))
    checked = broker(None, "check", "--config", str(file))
    assert checked.returncode == 10
    assert "SOFTHSM2_CONF, by which this module finds its configuration, is not set here" in checked.stdout


def test_K21_the_serial_number_is_recorded_and_held_to(made: Path) -> None:
    file = made / "broker" / "broker.toml"
    written = tomllib.loads(file.read_text())["hsm"]
    assert len(written["token_serial"]) == 16
    (other,) = Path(make_token(made / "second").environment["SOFTHSM2_CONF"]).with_name("tokens").iterdir()
    other.rename(made / "token" / "tokens" / other.name)
    try:
        assert broker(None, "check", "--config", str(file)).returncode == 0
        ambiguous = made / "ambiguous.toml"
        lines = file.read_text().splitlines(keepends=True)
        ambiguous.write_text("".join(line for line in lines if "token_serial" not in line))
        told = broker(None, "check", "--config", str(ambiguous)).stdout
        assert "2 tokens are labelled 'broker-tests'" in told
    finally:
        (made / "token" / "tokens" / other.name).rename(made / "away")


def test_a_token_on_which_no_broker_can_be_made_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = make_token(tmp_path / "token")
    conf = Path(config.environment["SOFTHSM2_CONF"])
    listed = "-CKM_DES_ECB,CKM_ECDSA,CKM_AES_GCM"
    conf.write_text(conf.read_text().replace("slots.mechanisms = ALL", f"slots.mechanisms = {listed}"))
    done = init(tmp_path / "broker", config)
    assert done.returncode == 1
    assert "(HSM_UNFIT)" in done.stderr
    assert "CKM_ECDSA" in done.stderr
    assert "CKM_AES_GCM" in done.stderr
    assert not (tmp_path / "broker" / "broker.toml").exists()
    refused = init(tmp_path / "broker", config, "--token-serial", "0123456789abcdef")
    assert "(HSM_TOKEN_MISMATCH)" in refused.stderr
    assert not (tmp_path / "broker" / "broker.toml").exists()
