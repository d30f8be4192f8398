"""Making a SoftHSM token, for development and for an embedded broker without a hardware token.

The token is made in a fresh process, because a module reads its configuration once and must not be touched by the
process that only wants a token made. The PINs travel over its standard input: never in arguments, never in the
environment.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from broker.core.errors import AlreadyExists, InvalidRequest, WrongState
from broker.core.reasons import Reason

SOFTHSM_MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",  # Debian, Ubuntu
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",  # Fedora, RHEL
    "/usr/lib64/softhsm/libsofthsm.so",
    "/usr/lib/pkcs11/libsofthsm2.so",  # Arch
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",  # macOS
    "/usr/local/lib/softhsm/libsofthsm2.so",
)
_CONFIG = """\
directories.tokendir = {tokens}
objectstore.backend = file
objectstore.umask = 0077
log.level = ERROR
slots.removable = false
slots.mechanisms = ALL
library.reset_on_fork = true
"""
_MAKING = "tokens.new"
_RW_SESSION = 0x2 | 0x4
_SECURITY_OFFICER = 0


def find_softhsm() -> Path:
    """The path of the installed SoftHSM 2 module; WrongState ``SOFTHSM_MISSING`` naming what to install."""
    for place in SOFTHSM_MODULES:
        if Path(place).is_file():
            return Path(place)
    raise WrongState(
        Reason.SOFTHSM_MISSING,
        "SoftHSM 2 is not installed: on Debian or Ubuntu run 'apt-get install softhsm2', on Fedora "
        "'dnf install softhsm', on macOS 'brew install softhsm', or name another PKCS#11 module.",
    )


def create_softhsm_token(folder: Path, label: str, pin: str, so_pin: str, module: str | None = None) -> dict[str, str]:
    """Make a token in ``folder`` (created, 0700) and return the environment for ``HsmConfig``.

    ``label``: 1 to 32 bytes of UTF-8; PINs: 4 to 255 bytes. AlreadyExists ``TOKEN_EXISTS`` when the folder already
    holds tokens: nothing is ever initialised a second time.
    """
    path = Path(module) if module else find_softhsm()
    if not 1 <= len(label.encode()) <= 32 or not label.isprintable():
        raise InvalidRequest(Reason.TOKEN_LABEL_INVALID, "The token label is not 1 to 32 printable bytes.")
    if not all(4 <= len(text.encode()) <= 255 for text in (pin, so_pin)):
        raise InvalidRequest(Reason.PIN_LENGTH, "A SoftHSM PIN has 4 to 255 characters.")
    making, tokens = _lay_out(folder)
    order = {"module": str(path), "label": label, "pin": pin, "so_pin": so_pin}
    _in_fresh_process({"SOFTHSM2_CONF": str(making)}, order)
    config = _write_config(folder.absolute() / "softhsm2.conf", tokens)
    (tokens.parent / _MAKING).rename(tokens)  # an interrupted run leaves no token that nobody can log in to
    making.unlink()
    return {"SOFTHSM2_CONF": str(config)}


def softhsm_environment(folder: Path) -> dict[str, str]:
    """The environment of the token that ``create_softhsm_token`` made in ``folder``; {} when there is none."""
    config, tokens = folder.absolute() / "softhsm2.conf", folder / "tokens"
    made = config.exists() and tokens.is_dir() and any(tokens.iterdir())
    return {"SOFTHSM2_CONF": str(config)} if made else {}


def _lay_out(folder: Path) -> tuple[Path, Path]:
    """Create the folders; the softhsm2.conf to make the token with, and where the token is to be in the end."""
    folder = folder.absolute()
    tokens, making = folder / "tokens", folder / _MAKING
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    tokens.mkdir(mode=0o700, exist_ok=True)
    if any(tokens.iterdir()):
        raise AlreadyExists(
            Reason.TOKEN_EXISTS, f"There is already a token in {tokens}; use it, or choose another folder."
        )
    if making.exists():
        shutil.rmtree(making)
    making.mkdir(mode=0o700)
    return _write_config(folder / f"{_MAKING}.conf", making), tokens


def _write_config(config: Path, tokens: Path) -> Path:
    descriptor = os.open(config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(_CONFIG.format(tokens=tokens))
    return config


def _in_fresh_process(environment: dict[str, str], order: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "broker.hsm.tokens"],
        input=json.dumps(order).encode(),
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        raise WrongState(
            Reason.TOKEN_NOT_CREATED,
            f"SoftHSM did not make the token: {done.stderr.decode(errors='replace').strip()[-200:]}",
        )


def initialise(order: dict[str, str]) -> None:
    """C_InitToken on the first slot of a module that holds no token yet, then C_InitPIN as its security officer.

    ``order``: module, label, pin, so_pin. Ends the process on any error.
    """
    module = ctypes.CDLL(order["module"])
    label = order["label"].encode().ljust(32)
    pin, so_pin = order["pin"].encode(), order["so_pin"].encode()
    _expect("C_Initialize", module.C_Initialize(None))
    count = ctypes.c_ulong(1)
    slot = ctypes.c_ulong()
    code = module.C_GetSlotList(ctypes.c_ubyte(0), ctypes.byref(slot), ctypes.byref(count))
    _expect("C_GetSlotList", code)
    _expect("C_InitToken", module.C_InitToken(slot, so_pin, ctypes.c_ulong(len(so_pin)), label))
    session = ctypes.c_ulong()
    flags = ctypes.c_ulong(_RW_SESSION)
    _expect("C_OpenSession", module.C_OpenSession(slot, flags, None, None, ctypes.byref(session)))
    officer = ctypes.c_ulong(_SECURITY_OFFICER)
    _expect("C_Login", module.C_Login(session, officer, so_pin, ctypes.c_ulong(len(so_pin))))
    _expect("C_InitPIN", module.C_InitPIN(session, pin, ctypes.c_ulong(len(pin))))
    _expect("C_Finalize", module.C_Finalize(None))


def _expect(function: str, code: int) -> None:
    if code:
        sys.exit(f"{function} gave CKR 0x{code:x}")


if __name__ == "__main__":
    initialise(json.load(sys.stdin))
