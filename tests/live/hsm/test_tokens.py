"""Which token is meant, and what is told when it is not there: what is seen, and no advice that could do harm."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from broker.core.errors import BrokerError
from broker.hsm import ground
from broker.hsm.config import HsmConfig
from broker.hsm.login import serial_number
from tests.fakes.refusals import told_by
from tests.servers.modules import softhsm_but
from tests.servers.shim import Shim, make_shim_token
from tests.servers.softhsm import KeysHsm, alone, make_token


def start(config: HsmConfig) -> str:
    try:
        hsm = KeysHsm(config)
    except BrokerError as refusal:
        return f"{refusal.reason}: {refusal.message}"
    serial = hsm.report().token_serial
    hsm.close()
    return f"started on {serial}"


def _beside(folder: Path, *labels: str) -> HsmConfig:
    """Several tokens in one SoftHSM; the config is the first one's."""
    config = make_token(folder / "0", label=labels[0])
    for number, label in enumerate(labels[1:], 1):
        (other,) = (
            Path(make_token(folder / str(number), label=label).environment["SOFTHSM2_CONF"])
            .with_name("tokens")
            .iterdir()
        )
        other.rename(folder / "0" / "tokens" / other.name)
    return config


# ---- K05: what is there -------------------------------------------------------------------------------------------


def _asked_otherwise(folder: Path) -> dict[str, str]:
    config = _beside(folder, "Broker", "payments")
    told = {label: start(config.model_copy(update={"token_label": label})) for label in ("broker", "Broker ", "other")}
    lost = config.model_copy(update={"environment": {}, "token_label": "Broker"})
    empty = folder / "empty"
    (empty / "tokens").mkdir(parents=True)
    (empty / "conf").write_text(f"directories.tokendir = {empty / 'tokens'}\n")
    (empty / "gone").write_text("directories.tokendir = /nonexistent/tokens\n")
    for name in ("conf", "gone", "nowhere"):
        told[name] = start(config.model_copy(update={"environment": {"SOFTHSM2_CONF": str(empty / name)}}))
    del os.environ["SOFTHSM2_CONF"]
    told["lost"] = start(lost)
    return told


def test_K05_what_the_module_shows_is_told_and_nobody_is_told_to_initialise(tmp_path: Path) -> None:
    told = alone(_asked_otherwise, tmp_path)
    for label in ("broker", "Broker ", "other"):
        assert told[label].startswith(f"HSM_TOKEN_NOT_FOUND: The module shows no token labelled '{label}'; it shows ")
        assert re.search(r"'Broker' \(serial number '[0-9a-f]{16}'\)", told[label])
        assert re.search(r"'payments' \(serial number '[0-9a-f]{16}'\)", told[label])
    assert "Labels are compared to the letter: 'Broker'?" in told["broker"]
    assert "to the letter" not in told["other"]
    assert told["conf"].endswith("it shows none that is initialised.")
    assert "/nonexistent/tokens cannot be read (No such file or directory)" in told["gone"]
    assert f"{tmp_path}/empty/nowhere cannot be read (No such file or directory)" in told["nowhere"]
    assert "SOFTHSM2_CONF, by which this module finds its configuration, is not set here" in told["lost"]
    assert "[hsm.environment]" in told["lost"]
    assert not [one for one in told.values() if "initialise it" in one or "init_token" in one.lower()]


def test_K05_what_a_module_finds_its_configuration_by_is_kept_and_nothing_else() -> None:
    environment = {"SOFTHSM2_CONF": "conf/softhsm2.conf", "PATH": "/bin", "YUBIHSM_PIN": "1234", "OPENSC_CONF": ""}
    assert ground.kept_environment(environment) == {"SOFTHSM2_CONF": str(Path("conf/softhsm2.conf").absolute())}
    every = ground.kept_environment(dict.fromkeys(ground.VARIABLES, "/etc/one"))
    kept = HsmConfig(module=Path("m"), token_label="x", pin_file=Path("p"), environment=every)
    assert kept.environment == dict.fromkeys(ground.VARIABLES, "/etc/one")


@pytest.mark.parametrize("name", ["LD_PRELOAD", "Ld_Preload", "Path", "P11_KIT_STRICT", "HOME", "softhsm2_conf"])
def test_K05_no_variable_that_loads_code_is_set_for_a_module(name: str) -> None:
    with pytest.raises(ValidationError):
        HsmConfig(module=Path("m"), token_label="x", pin_file=Path("p"), environment={name: "/x"})


# ---- K21: two tokens of one label ---------------------------------------------------------------------------------


def _doubles(folder: Path) -> dict[str, str]:
    first = make_token(folder / "alone")
    told = {"serial": serial_number(first)}
    config = _beside(folder / "both", "broker-tests", "broker-tests")
    told["none"] = start(config)
    serials = re.findall(r"serial number '([0-9a-f]+)'", told["none"])
    for number, serial in enumerate(serials):
        told[f"{number}"] = start(config.model_copy(update={"token_serial": serial})).replace(serial, "ITS")
    told["neither"] = start(config.model_copy(update={"token_serial": "0123456789abcdef"}))
    told["single"] = start(first.model_copy(update={"token_serial": told["serial"]})).replace(told["serial"], "ITS")
    told["another"] = start(first.model_copy(update={"token_serial": serials[0]}))
    told["as before"] = start(first).replace(told["serial"], "ITS")
    return told


def test_K21_a_serial_number_tells_tokens_of_one_label_apart(tmp_path: Path) -> None:
    told = alone(_doubles, tmp_path)
    assert told["none"].startswith("HSM_TOKEN_AMBIGUOUS: 2 tokens are labelled 'broker-tests': ")
    assert "set token_serial to the one that is meant" in told["none"]
    assert (told["0"], told["1"], told["single"], told["as before"]) == ("started on ITS",) * 4
    for name in ("neither", "another"):
        assert told[name].startswith("HSM_TOKEN_MISMATCH: ")
    assert "asks for the serial number '0123456789abcdef'" in told["neither"]
    assert f"'broker-tests' (serial number '{told['serial']}')" in told["another"]


# ---- K10: the PIN -------------------------------------------------------------------------------------------------

_FLAGS = """
static unsigned long (*real_one)(unsigned long, unsigned char *);
/* A token says of itself that somebody has entered wrong PINs: in the flags, after four texts of 32, 32, 16 and 16. */
static unsigned long instead(unsigned long slot, unsigned char *found) {
  unsigned long code = real_one(slot, found), flags;
  memcpy(&flags, found + 96, sizeof flags);
  flags |= strtoul(getenv("EXTRA_FLAGS"), 0, 0);
  memcpy(found + 96, &flags, sizeof flags);
  return code;
}
"""
_GET_TOKEN_INFO = 7
_COUNT_LOW, _FINAL_TRY, _LOCKED = 0x10000, 0x20000, 0x40000


def _flagged(config: HsmConfig) -> dict[int, str]:
    told = {}
    for flags in (0, _COUNT_LOW, _FINAL_TRY, _LOCKED):
        environment = {**config.environment, "EXTRA_FLAGS": hex(flags)}
        told[flags] = start(config.model_copy(update={"environment": environment}))
    return told


def test_K10_a_pin_is_not_tried_when_it_could_be_the_last_time(tmp_path: Path) -> None:
    config = make_token(tmp_path / "token")
    module = softhsm_but(tmp_path, _GET_TOKEN_INFO, _FLAGS)
    told = alone(_flagged, config.model_copy(update={"module": module}))
    assert told[0].startswith("started")
    assert told[_COUNT_LOW].startswith("started")
    assert told[_FINAL_TRY].startswith("HSM_PIN_AT_RISK: One more wrong user PIN would lock the token")
    assert told[_LOCKED].startswith("HSM_PIN_LOCKED: ")


# ---- K10: the cause comes first -----------------------------------------------------------------------------------


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _away(folder: Path) -> list[str]:
    config = make_token(folder)
    clock = _Clock()
    hsm = KeysHsm(config, clock)
    tokens = folder / "tokens"
    tokens.rename(folder / "away")
    told = [told_by(hsm.check)]
    clock.now = 2.0
    told.append(told_by(hsm.check))
    (folder / "away").rename(tokens)
    clock.now = 100.0
    told.append(told_by(hsm.check))
    hsm.close()
    return told


def test_K10_the_cause_comes_before_the_pace(tmp_path: Path) -> None:
    folder = tmp_path / "token"
    first, second, third = alone(_away, folder)
    assert first.startswith("HSM_UNAVAILABLE: The HSM does not answer: ")
    assert f"SoftHSM's token folder {folder}/tokens cannot be read (No such file or directory)" in first
    cause, _, pace = second.partition("; the next attempt to reach it is due in ")
    assert f"token folder {folder}/tokens cannot be read" in cause
    assert pace == "3 s."
    assert third == "ok"


def _ill(folder: Path) -> list[str]:
    clock = _Clock()
    config = make_shim_token(folder)
    hsm = KeysHsm(config, clock)
    told = []
    for code in ("0x30", "0xe0", "0x80004711"):
        Shim(folder).obey(
            f"C_GetSessionInfo return {code}", f"C_GetTokenInfo return {code}", f"C_Initialize return {code}"
        )
        told += [told_by(hsm.check), told_by(hsm.check)]
        Shim(folder).obey()
        clock.now += 100
        told.append(told_by(hsm.check))
        clock.now += 100
    hsm.close()
    return told


def test_K10_each_code_is_told_by_its_name(tmp_path: Path) -> None:
    told = alone(_ill, tmp_path / "token")
    names = ["CKR_DEVICE_ERROR", "CKR_TOKEN_NOT_PRESENT", "CKR_VENDOR_DEFINED 0x80004711"]
    for number, name in enumerate(names):
        at_once, paced, later = told[3 * number : 3 * number + 3]
        assert at_once.startswith("HSM_UNAVAILABLE: The HSM does not answer: ")
        assert name in at_once
        assert name in paced.partition("; the next attempt")[0]
        assert later == "ok"
