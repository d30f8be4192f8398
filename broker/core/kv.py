"""Static secrets: versions of named fields, sealed at rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from broker.core import ports
from broker.core.call import Call
from broker.core.guard import Guard
from broker.core.model import RootKey, Secret, SecretRead, SecretVersion
from broker.core.page import Page
from broker.core.sealing import Sealing


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One thing to fetch: "team/app/db", "team/app/db@3", "team/app/db#password", "team/app/db@3#password"."""

    text: str
    name: str
    version: int  # 0: the latest
    field: str  # "": all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A fetched secret in the clear; never logged, never kept. ``repr`` shows no value."""

    reference: Reference
    version: int
    fields: Mapping[str, bytes]
    expires_at: datetime | None

    def __repr__(self) -> str:
        return f"Opened({self.reference.text!r}, version={self.version})"


def parse_reference(text: str) -> Reference:
    """Read a reference; InvalidRequest ``REFERENCE_INVALID``."""
    raise NotImplementedError


class Secrets:
    """The noun behind SecretService, and what FetchSecrets reads from. Permission first, only BrokerError raised."""

    def __init__(self, store: ports.Store, hsm: ports.Hsm, sealing: Sealing, guard: Guard, now: ports.Now) -> None:
        raise NotImplementedError

    def put(
        self,
        call: Call,
        name: str,
        fields: Mapping[str, bytes],
        *,
        expected_version: int | None,
        labels: dict[str, str],
        expires_at: datetime | None,
    ) -> Secret:
        """WrongState ``VERSION_MISMATCH`` when another version is the latest by now: exactly one writer wins."""
        raise NotImplementedError

    def get(self, call: Call, name: str) -> tuple[Secret, SecretRead | None]:
        raise NotImplementedError

    def page(
        self, call: Call, prefix: str, contains: str, after: tuple[str | int, ...], limit: int
    ) -> Page[tuple[Secret, SecretRead | None]]:
        raise NotImplementedError

    def versions(self, call: Call, name: str, after: tuple[str | int, ...], limit: int) -> Page[SecretVersion]:
        raise NotImplementedError

    def delete(self, call: Call, name: str, versions: list[int]) -> Secret:
        raise NotImplementedError

    def undelete(self, call: Call, name: str, versions: list[int]) -> Secret:
        raise NotImplementedError

    def destroy(self, call: Call, name: str, versions: list[int]) -> Secret:
        raise NotImplementedError

    def read(self, call: Call, reference: Reference) -> Opened:
        """Decide (action FetchSecrets on the secret), find and open one reference; writes nothing.

        PermissionDenied, NotFound ``SECRET_NOT_FOUND`` / ``SECRET_VERSION_NOT_FOUND`` / ``FIELD_NOT_FOUND``,
        WrongState ``SECRET_EXPIRED`` / ``SECRET_DELETED`` / ``SECRET_DAMAGED``.
        """
        raise NotImplementedError

    def was_read(self, principal: str, names: list[str]) -> None:
        """Remember who read; the background loop writes it down within seconds (``flush_reads``)."""
        raise NotImplementedError

    def rotate_root(self, call: Call) -> int:
        raise NotImplementedError

    def root(self, call: Call) -> tuple[RootKey, int]:
        """The newest root key and how many versions still wait to be rewrapped."""
        raise NotImplementedError
