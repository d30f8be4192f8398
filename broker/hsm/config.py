"""How to reach the token, and the PIN's file."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from broker import secret_files
from broker.core.errors import WrongState
from broker.core.reasons import Reason

# Names that decide what code gets loaded; a config file must not be a way to have some (SC-04).
_CODE_LOADING = re.compile(r"(LD_|DYLD_|PYTHON|OPENSSL_|GCONV_|P11_KIT_).*|PATH|HOME", re.ASCII | re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Z][A-Za-z0-9_]{0,63}", re.ASCII)  # one vendor's is ChrystokiConfigurationPath
_MAX_PIN = 256


class HsmConfig(BaseModel):
    """Which PKCS#11 module, which token in it, and where its user PIN is. No PIN is ever held here.

    ``token_serial`` tells apart tokens of one label; without it there may be only one of the label. ``environment`` is
    set in this process before the module is loaded (SoftHSM reads ``SOFTHSM2_CONF``). ``sessions`` is how many calls
    can be in the token at a time; ``session_wait`` how long one waits for its turn. After a loss the module is reloaded
    at once; the next reload comes ``reload_interval`` after one that worked, ``retry_interval`` after one that did not.
    Times are seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    module: Path
    token_label: str = Field(min_length=1, max_length=32)
    token_serial: str | None = Field(default=None, min_length=1, max_length=16)
    pin_file: Path
    environment: dict[str, str] = Field(default_factory=dict, max_length=16)
    sessions: int = Field(default=8, ge=1, le=256)
    session_wait: float = Field(default=5.0, gt=0, le=60)
    reload_interval: float = Field(default=30.0, ge=0, le=3600)
    retry_interval: float = Field(default=5.0, ge=0, le=3600)

    @field_validator("environment")
    @classmethod
    def _harmless(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not _VARIABLE.fullmatch(name) or _CODE_LOADING.fullmatch(name):
                raise ValueError(
                    f"{name[:64]!a} may not be set for the HSM module: it is not the module's own variable"
                )
            if "\0" in text or len(text) > 4096:
                raise ValueError(f"the value of {name} is not valid: at most 4096 characters, no NUL")
        return value


def read_pin(path: Path) -> str:
    """Return the PIN that the file holds, without the line end.

    WrongState ``HSM_PIN_FILE`` unless it is a file that nobody else may read (``secret_files``), with a PIN in it.
    """
    try:
        return _parse_pin(path, secret_files.read(path, _MAX_PIN + 8))
    except secret_files.UnusableError as fault:
        raise WrongState(Reason.HSM_PIN_FILE, f"The PIN file {path} {fault.why}; {fault.cure}.") from fault


def _parse_pin(path: Path, content: bytes) -> str:
    try:
        pin = secret_files.line(content).decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        pin = ""
    if not pin or len(pin) > _MAX_PIN or not pin.isprintable():
        # ``from None``: the decoding error would carry the file's bytes.
        raise WrongState(
            Reason.HSM_PIN_FILE, f"The PIN file {path} does not hold one line of 1 to {_MAX_PIN} printable characters."
        ) from None
    return pin
