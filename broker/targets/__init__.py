"""Where keys can be imported to: one folder a kind of target, each with a ``KIND = …`` line.

A new kind is a new folder; nothing here or elsewhere lists them.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from broker.core import ports
from broker.core.errors import InvalidRequest
from broker.core.reasons import Reason
from broker.targets.binding import Credential, check_bound

S = TypeVar("S", bound=BaseModel)

MAX_OPEN = 64
"""How many targets keep a connection open at once; the least used one gives way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateVault:
    """A server that speaks the Key Vault REST API and is not Microsoft's: an emulator, or a private cloud's."""

    kind: str  # "premium" or "managed-hsm": what it can hold
    ca_file: Path  # PEM; nothing else is trusted there
    token_file: Path  # the bearer token, in a file of mode 0600


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the broker's own configuration says of targets, regardless of who registers them (BY-03, NT-17)."""

    allowed_hosts: frozenset[str]  # "host:port", the only places that are ever connected to
    credentials: Path  # has a folder "host:port" for each host, with the token files that this host may be shown
    private_vaults: Mapping[str, PrivateVault] = field(
        default_factory=dict
    )  # by "host:port"; each is allowed by being here
    credentials_for: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # see ``binding``
    vault_transfer_files: bool = False  # whether keys may be wrapped into files for Vault and OpenBao


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[S]):
    """One kind of target: its name on the wire, the settings an operator gives, and how a target is built of them.

    ``build`` opens no connection; InvalidRequest when the surroundings forbid these settings.
    """

    name: str
    settings: type[S]
    build: Callable[[S, Surroundings], ports.Target]
    credential: Callable[[S], Credential]


def kinds() -> Mapping[str, Kind[BaseModel]]:
    """Every kind there is a folder for, by name."""
    known: dict[str, Kind[BaseModel]] = {}
    for found in pkgutil.iter_modules(__path__):
        if found.ispkg:
            kind = import_module(f"{__name__}.{found.name}").KIND
            known[kind.name] = kind
    return known


class Connector:
    """The core's ``Connect``. A port is kept for as long as the same kind and settings are asked for."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._known = kinds()
        self._surroundings = surroundings
        self._build = lru_cache(maxsize=MAX_OPEN)(self._built)

    def __call__(self, name: str, kind: str, settings: Mapping[str, str]) -> ports.Target:
        """The port for the target ``name``; InvalidRequest when the configuration forbids it this place or token."""
        port, credential = self._build(kind, frozenset(settings.items()))
        check_bound(name, credential, self._surroundings.credentials_for)
        return port

    def canonical(self, kind: str, settings: Mapping[str, str]) -> dict[str, str]:
        """The settings in their one spelling, those that are empty left out; InvalidRequest when they will not do."""
        found = _checked(self._kind(kind), dict(settings)).model_dump()
        return {name: value for name, value in found.items() if value}

    def _built(self, kind: str, settings: frozenset[tuple[str, str]]) -> tuple[ports.Target, Credential]:
        chosen = self._kind(kind)
        checked = _checked(chosen, dict(settings))
        return chosen.build(checked, self._surroundings), chosen.credential(checked)

    def _kind(self, kind: str) -> Kind[BaseModel]:
        if kind not in self._known:
            known = ", ".join(self._known)
            raise InvalidRequest(Reason.TARGET_KIND_UNKNOWN, f"This kind of target is not known; use {known}.")
        return self._known[kind]


def connector(surroundings: Surroundings) -> Connector:
    """The way to every kind of target, as these surroundings allow it."""
    return Connector(surroundings)


def _checked(kind: Kind[BaseModel], settings: dict[str, str]) -> BaseModel:
    try:
        return kind.settings.model_validate(settings)
    except ValidationError as error:
        faults = "; ".join(_fault(fault["loc"], fault["msg"]) for fault in error.errors(include_input=False))
        raise InvalidRequest(Reason.TARGET_SETTINGS_INVALID, f"The target's settings will not do: {faults}.") from None


def _fault(place: tuple[int | str, ...], message: str) -> str:
    # Names that a caller made up are not quoted back; pydantic's own messages never hold the input.
    field = str(place[0]) if place else "settings"
    return (
        f"{field if field.isidentifier() and len(field) <= 32 else 'a field'}: {message.removeprefix('Value error, ')}"
    )
