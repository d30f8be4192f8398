"""Who is calling: one folder an authenticator, each with a ``KIND = …`` line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from broker.core import ports

C = TypeVar("C", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[C]):
    """One way of proving who calls: its name, its part of the configuration, and how the port is built from it."""

    name: str
    config: type[C]
    build: Callable[[C, ports.Store, ports.Now], Any]  # gives a ports.Authenticator
