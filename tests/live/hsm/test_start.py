"""Faults of the set-up: one clear sentence each, and never a second try with a wrong PIN."""

from __future__ import annotations

import ctypes
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import ValidationError

from broker.core.errors import AlreadyExists, BrokerError, InvalidRequest
from broker.hsm.config import HsmConfig, read_pin
from broker.hsm.tokens import create_softhsm_token, find_softhsm
from tests.servers.softhsm import PIN, KeysHsm, alone, make_token

WRONG = "canary-wrong-pin-0815"


@dataclass(frozen=True)
class Fault:
    """What a start told."""

    reason: str
    message: str
    everything: str  # the whole traceback, causes included, and the reprs


def start(config: HsmConfig) -> Fault | None:
    try:
        KeysHsm(config).close()
    except BrokerError as refusal:
        everything = "".join(traceback.format_exception(refusal)) + repr(refusal) + repr(config)
        return Fault(refusal.reason, refusal.message, everything)
    return None


def _softhsm_faults(folder: Path) -> dict[str, Fault | None]:
    """All faults that a token can have, one after the other in one process, and a good start at the end."""
    config = make_token(folder / "one")
    wrong = folder / "wrong-pin"
    wrong.touch(0o600)
    wrong.write_text(WRONG)
    double = make_token(folder / "two")
    (other,) = Path(make_token(folder / "three").environment["SOFTHSM2_CONF"]).with_name("tokens").iterdir()
    other.rename(folder / "two" / "tokens" / other.name)
    blank = folder / "blank"
    (blank / "tokens").mkdir(parents=True)
    conf = blank / "softhsm2.conf"
    conf.write_text(f"directories.tokendir = {blank / 'tokens'}\n")
    return {
        "label": start(config.model_copy(update={"token_label": "another"})),
        "two": start(double),
        "blank": start(config.model_copy(update={"environment": {"SOFTHSM2_CONF": str(conf)}})),
        "pin": start(config.model_copy(update={"pin_file": wrong})),
        "nowhere": start(config.model_copy(update={"environment": {"SOFTHSM2_CONF": "/nonexistent"}})),
        "good": start(config),
    }


def test_each_fault_of_a_token_is_named(tmp_path: Path) -> None:
    faults = alone(_softhsm_faults, tmp_path)
    assert faults.pop("good") is None
    reasons = {name: fault.reason if fault else "started" for name, fault in faults.items()}
    assert reasons == {
        "label": "HSM_TOKEN_NOT_FOUND",
        "two": "HSM_TOKEN_AMBIGUOUS",
        "blank": "HSM_TOKEN_NOT_FOUND",
        "pin": "HSM_PIN_INCORRECT",
        "nowhere": "HSM_UNAVAILABLE",
    }
    for fault in faults.values():
        assert fault is not None
        assert fault.message.endswith(".")
        assert "\n" not in fault.message
        # HS-15: a PIN shows nowhere, not in a cause either.
        assert WRONG not in fault.everything
        assert PIN not in fault.everything


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: folder / "missing.so", "HSM_MODULE_MISSING"),
        (lambda folder: folder, "HSM_MODULE_MISSING"),
        (lambda folder: _file(folder, b"not a library"), "HSM_MODULE_INVALID"),
        (lambda _: _libc(), "HSM_MODULE_INVALID"),
        (lambda folder: _file(folder, find_softhsm().read_bytes(), mode=0o666), "HSM_MODULE_UNSAFE"),
    ],
    ids=["missing", "folder", "text", "libc", "writable by others"],
)
def test_SC_04_a_module_that_is_none_is_refused(tmp_path: Path, make: Callable[[Path], Path], reason: str) -> None:
    pin = _file(tmp_path, b"1234", name="pin")
    fault = start(HsmConfig(module=make(tmp_path), token_label="x", pin_file=pin))
    assert fault is not None
    assert fault.reason == reason


def _file(folder: Path, content: bytes, name: str = "module.so", mode: int = 0o600) -> Path:
    path = folder / name
    path.write_bytes(content)
    path.chmod(mode)
    return path


def _libc() -> Path:
    with Path("/proc/self/maps").open() as maps:
        return Path(next(line.split()[-1] for line in maps if "libc.so" in line))


def _logins_with_a_wrong_pin(folder: Path) -> tuple[int, list[str]]:
    """Count C_Login in the real module's function list while the PIN changes under a running broker."""
    config = make_token(folder).model_copy(update={"reload_interval": 0.0, "retry_interval": 0.0})
    hsm = KeysHsm(config)
    logins, _keep = _count_logins(config.module)
    config.pin_file.write_text(WRONG)
    with hsm.paused():
        hsm.sessions.module.finalize()
    reasons = []
    for _ in range(5):
        try:
            hsm.check()
        except BrokerError as refusal:
            reasons.append(refusal.reason)
    config.pin_file.write_text(PIN)
    try:
        hsm.check()
    except BrokerError as refusal:
        reasons.append(refusal.reason)
    hsm.close()
    return len(logins), reasons


def _count_logins(module: Path) -> tuple[list[int], object]:
    """Put a counting door before the module's own C_Login; it forwards every call."""
    library = ctypes.CDLL(str(module))
    functions = ctypes.POINTER(ctypes.c_void_p)()
    assert library.C_GetFunctionList(ctypes.byref(functions)) == 0
    place = 1 + 18  # the version, then C_Login as the 19th function (PKCS#11 2.40, pkcs11f.h)
    kind = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong)
    real = kind(functions[place] or 0)
    calls: list[int] = []

    def login(session: int, user: int, pin: int, length: int) -> int:
        calls.append(user)
        return int(real(session, user, pin, length))

    door = kind(login)
    functions[place] = ctypes.cast(door, ctypes.c_void_p).value
    return calls, door


def test_HS_15_a_refused_pin_is_never_tried_a_second_time(tmp_path: Path) -> None:
    logins, reasons = alone(_logins_with_a_wrong_pin, tmp_path / "token")
    assert logins == 1
    assert reasons == ["HSM_UNAVAILABLE"] * 6


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_HS_15_a_pin_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(BrokerError) as refusal:
        read_pin(_file(tmp_path, b"1234", mode=mode))
    assert refusal.value.reason == "HSM_PIN_FILE"
    assert "chmod 600" in refusal.value.message


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines", b"\xff\xfe", b"nul\0", b"x" * 300])
def test_HS_15_a_pin_file_without_one_pin_is_refused_and_not_quoted(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BrokerError) as refusal:
        read_pin(_file(tmp_path, content))
    assert refusal.value.reason == "HSM_PIN_FILE"
    shown = "".join(traceback.format_exception(refusal.value))
    assert "two\nlines" not in shown
    assert "xxxx" not in shown


def test_HS_15_a_pin_file_must_be_a_plain_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    os.mkfifo(folder / "fifo", 0o600)
    (folder / "link").symlink_to(_file(tmp_path, b"1234", name="pin"))
    for name in ("fifo", "link", "missing", "."):
        with pytest.raises(BrokerError) as refusal:
            read_pin(folder / name)
        assert refusal.value.reason == "HSM_PIN_FILE"
    assert read_pin(tmp_path / "pin") == "1234"


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PATH", "OPENSSL_CONF", "x", ""]
)
def test_SC_04_the_environment_cannot_bring_in_code(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValidationError):
        HsmConfig(module=tmp_path, token_label="x", pin_file=tmp_path, environment={name: "evil"})


def test_a_token_is_never_initialised_over_another(tmp_path: Path) -> None:
    create_softhsm_token(tmp_path / "t", "label", PIN, PIN)
    before = {file: file.read_bytes() for file in (tmp_path / "t").rglob("*") if file.is_file()}
    with pytest.raises(AlreadyExists):
        create_softhsm_token(tmp_path / "t", "label", PIN, PIN)
    assert before == {file: file.read_bytes() for file in (tmp_path / "t").rglob("*") if file.is_file()}
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "t", *(tmp_path / "t").rglob("*")))
    for label, pin in (("", PIN), ("x" * 33, PIN), ("label", "123")):
        with pytest.raises(InvalidRequest):
            create_softhsm_token(tmp_path / "u", label, pin, PIN)
