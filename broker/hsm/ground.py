"""What a module stands on, as the system shows it: the variables that it reads, SoftHSM's files.

A module says CKR_GENERAL_ERROR of a full disk and of a variable that is not set alike; here is looked for what can be
seen from outside. Nothing is claimed that was not seen.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

VARIABLES: Final[Mapping[str, str]] = {
    "SOFTHSM2_CONF": "softhsm",
    "OPENSC_CONF": "opensc",
    "YUBIHSM_PKCS11_CONF": "yubihsm",
    "TPM2_PKCS11_STORE": "tpm2",
    "KRYOPTIC_CONF": "kryoptic",
    "CS_PKCS11_R2_CFG": "cs_pkcs11_r2",
    "CS_PKCS11_R3_CFG": "cs_pkcs11_r3",
    "ChrystokiConfigurationPath": "cryptoki2",
}
"""The variables by which well-known modules find their configuration, and a part of the module's file name.

Each holds a path and no secret, so `init` may keep it.
"""

_DAEMONS: Final = {
    "opencryptoki": ("pkcsslotd", "/run/pkcsslotd.socket"),
    "opensc": ("pcscd", "/run/pcscd/pcscd.comm"),
}
_TOKENS: Final = re.compile(r"^\s*directories\.tokendir\s*=\s*(\S.*?)\s*$", re.MULTILINE)
_LEAST_ROOM: Final = 64 * 1024


def kept_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Those of VARIABLES that are set, as absolute paths: what a later start must have too."""
    found = {name: environment[name] for name in VARIABLES if environment.get(name)}
    return {name: str(Path(value).absolute()) for name, value in found.items()}


def lost_variable(module: Path) -> str:
    """The variable that this module reads and that is not set, as half a sentence; "" when there is none."""
    if "p11-kit" in _names(module) and not any(os.environ.get(name) for name in VARIABLES):
        return (
            "none of the variables by which modules behind p11-kit find their configuration (SOFTHSM2_CONF and the "
            "like) is set here: if one was where the token was made, set it under [hsm.environment]"
        )
    for name, part in VARIABLES.items():
        if part in _names(module) and not os.environ.get(name):
            return (
                f"{name}, by which this module finds its configuration, is not set here: if it was where the token was "
                f"made, set it under [hsm.environment]"
            )
    return ""


def trouble(module: Path) -> str:
    """What is wrong with a known module's daemon or files, as half a sentence; "" when nothing is seen."""
    names = _names(module)
    for part, (daemon, socket_file) in _DAEMONS.items():
        if part in names:
            return _unreached(daemon, socket_file)
    return _softhsm_trouble() if "softhsm" in names else ""


def _unreached(daemon: str, socket_file: str) -> str:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(socket_file)
        except OSError as fault:
            return f"its daemon {daemon} is not reached at {socket_file} ({fault.strerror or fault})"
    return ""


def _softhsm_trouble() -> str:
    conf = _configuration()
    try:
        found = _TOKENS.search(conf.read_text(encoding="utf-8", errors="replace"))
    except OSError as fault:
        return f"SoftHSM's configuration {conf} cannot be read ({fault.strerror})"
    return _folder_trouble(Path(found[1])) if found else ""


def _folder_trouble(tokens: Path) -> str:
    """Of the folder of tokens; of one that is away more cannot be said."""
    try:
        folders = [tokens, *(one for one in tokens.iterdir() if one.is_dir())]
        room = os.statvfs(tokens)
    except OSError as fault:
        return f"SoftHSM's token folder {tokens} cannot be read ({fault.strerror})"
    if room.f_flag & os.ST_RDONLY:
        return f"SoftHSM's token folder {tokens} is on a read-only file system"
    if closed := next(
        (one for one in folders if not os.access(one, os.R_OK | os.W_OK | os.X_OK, effective_ids=True)), None
    ):
        return f"the user {os.geteuid()} may not write to SoftHSM's token folder {closed}"
    if room.f_bavail * room.f_frsize < _LEAST_ROOM or (room.f_files and not room.f_favail):
        return f"the file system of SoftHSM's token folder {tokens} is full"
    return ""


def _configuration() -> Path:
    """Where SoftHSM 2 looks for it."""
    if named := os.environ.get("SOFTHSM2_CONF"):
        return Path(named)
    own = Path(os.environ.get("HOME") or "/nonexistent") / ".config/softhsm2/softhsm2.conf"
    return own if own.exists() else Path("/etc/softhsm/softhsm2.conf")


def _names(module: Path) -> str:
    return f"{module.name} {module.resolve().name}".lower()
