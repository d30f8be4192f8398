"""The one TOML file, read once into frozen, typed values. It names files that hold secrets and holds none itself."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from broker.auth.oidc import OidcConfig
from broker.core.approvable import APPROVABLE, CASES, MOST, PRODUCTION
from broker.core.errors import InvalidRequest
from broker.core.gate.asking import ApprovalLimits
from broker.core.reasons import Reason
from broker.hsm.config import HsmConfig
from broker.rpc.server import ServerConfig
from broker.store.config import StoreConfig
from broker.targets.binding import TARGETS

MAX_CONFIG_BYTES = 65536
MAX_PORT = 65535
DRAFT = ".draft"
"""Ends the name of a configuration whose broker is still being made."""

CALLS_END = 10.0
"""Seconds that the calls under way are given to end when the broker does."""


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("the path must be absolute")
    return path


def _place(text: str) -> str:
    if not _PLACE.fullmatch(text) or int(text.rpartition(":")[2]) > MAX_PORT:
        raise ValueError("a host is written host:port in lower case, without https:// before it")
    return text


_PLACE = re.compile(r"(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\]):[1-9][0-9]{0,4}", re.ASCII)
Place = Annotated[str, AfterValidator(_place)]


Absolute = Annotated[Path, AfterValidator(_absolute)]


def _credential(text: str) -> str:
    host, slash, name = text.partition("/")
    if not slash or not _CREDENTIAL.fullmatch(name):
        raise ValueError('a credential is written host:port/NAME, NAME being its file, or for Azure "managed-identity"')
    return f"{_place(host)}/{name}"


def _target_names(text: str) -> str:
    if not TARGETS.fullmatch(text):
        raise ValueError('targets are written "prod", "team-b-*" (all whose names begin so) or "*" (all there are)')
    return text


_CREDENTIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}(?::[0-9a-f-]{36})?", re.ASCII)
CredentialPlace = Annotated[str, AfterValidator(_credential)]
TargetNames = Annotated[str, AfterValidator(_target_names)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PrivateVaultConfig(_Part):
    """A server that speaks the Key Vault REST API and is not Microsoft's: an emulator, or a private cloud's."""

    host: Place
    kind: Literal["premium", "managed-hsm"]
    ca_file: Absolute
    token_file: Absolute  # of mode 0600; the bearer token that this host is shown
    targets: tuple[TargetNames, ...] = Field(default=(), max_length=64)  # those that may use that token


class TargetsConfig(_Part):
    """Where keys may go at all. An operator registers targets; only this file says which hosts are thinkable."""

    allowed_hosts: frozenset[Place] = Field(default=frozenset(), max_length=64)
    credentials: Absolute  # in it a folder "host:port" for each host, with the tokens that this host may be shown
    private_vaults: tuple[PrivateVaultConfig, ...] = Field(default=(), max_length=16)
    credentials_for: dict[CredentialPlace, tuple[TargetNames, ...]] = Field(default={}, max_length=256)
    vault_transfer_files: bool = False  # anybody who imports such a file there can make the key exportable

    @model_validator(mode="after")
    def _one_entry_a_host(self) -> TargetsConfig:
        if len({vault.host for vault in self.private_vaults}) != len(self.private_vaults):
            raise ValueError("private_vaults has two entries for one host")
        return self


class KeysConfig(_Part):
    """How long a key can be saved after its destruction was asked for, in hours."""

    destruction_least_hours: int = Field(default=24, ge=0, le=24 * 365)
    destruction_usual_hours: int = Field(default=24 * 7, ge=0, le=24 * 365)
    destruction_most_hours: int = Field(default=24 * 30, ge=0, le=24 * 365)

    @model_validator(mode="after")
    def _ordered(self) -> KeysConfig:
        if not self.destruction_least_hours <= self.destruction_usual_hours <= self.destruction_most_hours:
            raise ValueError("destruction_usual_hours must lie between destruction_least_hours and _most_hours")
        return self


class DriftConfig(_Part):
    """How often targets and HSM are held against the record, in hours; 0: only when somebody asks."""

    every_hours: int = Field(default=24, ge=0, le=24 * 365)


class SecretsConfig(_Part):
    """How long an unwrapped data key is kept in memory, in seconds; 0 asks the HSM on every read."""

    keep_data_keys_seconds: int = Field(default=60, ge=0, le=3600)


class SessionsConfig(_Part):
    """Leases (and sessions) at once, and the length of a session that does not ask for one, in seconds."""

    leases_per_pipeline: int = Field(default=1000, ge=1, le=100_000)
    leases_in_all: int = Field(default=100_000, ge=1, le=10_000_000)
    usual_seconds: int = Field(default=300, ge=10, le=24 * 3600)


class ApprovalsConfig(_Part):
    """What needs other operators' approval; a policy can ask for more of it (``@approvals``).

    ``needed``: how many, by action or case, in place of what the preset says; 0 takes it back.
    """

    preset: Literal["none", "production"] = "none"
    needed: dict[str, Annotated[int, Field(ge=0, le=MOST)]] = Field(default={}, max_length=128)
    lifetime_hours: int = Field(default=24, ge=1, le=24 * 7)
    waiting_per_requester: int = Field(default=10, ge=1, le=100)
    waiting_in_all: int = Field(default=100, ge=1, le=1000)
    suspended: bool = False  # nothing is asked for, whatever else is said: for when nobody is left to approve

    @model_validator(mode="after")
    def _known(self) -> ApprovalsConfig:
        if unknown := sorted(self.needed.keys() - APPROVABLE.keys() - CASES.keys()):
            raise ValueError(
                f"{len(unknown)} name(s) in needed are no action or case that can wait for approvals; "
                "docs/operations.md lists them"
            )
        return self

    @property
    def counts(self) -> Mapping[str, int]:
        """How many approvals are asked for, by action or case."""
        preset = PRODUCTION if self.preset == "production" else {}
        return {name: count for name, count in {**preset, **self.needed}.items() if count}

    @property
    def limits(self) -> ApprovalLimits:
        """As the gate takes them."""
        return ApprovalLimits(
            lifetime=timedelta(hours=self.lifetime_hours),
            per_requester=self.waiting_per_requester,
            in_all=self.waiting_in_all,
            suspended=self.suspended,
        )


class Config(_Part):
    """Everything the broker needs to be told, and nothing that it can find out."""

    trust_domain: str = Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,253}[a-z0-9])?$")  # SPIFFE ID, section 2.1
    certificates: Absolute  # the folder of the CA certificates that `broker init` made
    development: bool = False  # said aloud at start and in `broker hsm`; allows nothing that production does not
    hsm: HsmConfig
    store: StoreConfig
    server: ServerConfig
    targets: TargetsConfig
    keys: KeysConfig = KeysConfig()
    drift: DriftConfig = DriftConfig()
    secrets: SecretsConfig = SecretsConfig()
    sessions: SessionsConfig = SessionsConfig()
    oidc: OidcConfig = OidcConfig()
    approvals: ApprovalsConfig = ApprovalsConfig()

    @model_validator(mode="after")
    def _paths_absolute(self) -> Config:
        # A module without a slash would even be looked for along the loader's path, and be another than was checked.
        server = self.server
        paths = {
            "hsm.module": self.hsm.module,
            "hsm.pin_file": self.hsm.pin_file,
            "server.certificate_file": server.certificate_file,
            "server.key_file": server.key_file,
            "server.operator_ca_file": server.operator_ca_file,
        }
        if relative := [name for name, path in paths.items() if not path.is_absolute()]:
            raise ValueError(f"the path must be absolute: {', '.join(relative)}")
        return self


def faults(error: ValidationError) -> str:
    """Each fault with the setting that has it; no value is quoted."""
    told = ((".".join(map(str, one["loc"])), str(one["msg"]).removeprefix("Value error, ")) for one in error.errors())
    return "; ".join(f"{place}: {sentence}" if place else sentence for place, sentence in told)


def load(path: Path) -> Config:
    """Read and check the whole file; InvalidRequest ``CONFIG_INVALID`` lists every fault at once.

    Every path in it must be absolute, so that the place the broker is started from means nothing. No value of the file
    is quoted in a fault.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        draft = path.with_name(path.name + DRAFT)
        unfinished = f" A `broker init` in {path.parent} did not come to its end: run it again." * draft.exists()
        raise InvalidRequest(
            Reason.CONFIG_UNREADABLE, f"{path} cannot be read: {error.strerror}.{unfinished}"
        ) from error
    return parse(raw, path)


def parse(raw: bytes, path: Path) -> Config:
    """What a configuration says, as ``load`` does; ``path`` is how refusals call it."""
    if len(raw) > MAX_CONFIG_BYTES:
        raise InvalidRequest(Reason.CONFIG_INVALID, f"{path} is larger than {MAX_CONFIG_BYTES} bytes.")
    try:
        document = tomllib.loads(raw.decode("utf-8-sig"))  # some editors put a byte order mark before the text
    except UnicodeDecodeError as error:
        raise InvalidRequest(Reason.CONFIG_INVALID, f"{path} is not text in UTF-8; save it as that.") from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequest(Reason.CONFIG_INVALID, f"{path} is not valid TOML: {error}.") from error
    try:
        config = Config.model_validate(document)
    except ValidationError as error:
        raise InvalidRequest(
            Reason.CONFIG_INVALID, f"{path} has {error.error_count()} fault(s): {faults(error)}."
        ) from error
    if config.server.workers > 1 and config.store.sqlite:
        raise InvalidRequest(
            Reason.WORKERS_NEED_POSTGRESQL,
            f"{path} asks for {config.server.workers} workers, and SQLite is for one process; use PostgreSQL, or one.",
        )
    return config
