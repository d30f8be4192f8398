"""One vault or Managed HSM: where it is, and the connection to it."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from broker.core.errors import WrongState
from broker.core.reasons import Reason
from broker.targets.azure_key_vault import refusals
from broker.targets.azure_key_vault.clouds import Place
from broker.targets.azure_key_vault.settings import AzureKeyVaultSettings

if TYPE_CHECKING:
    from broker.targets.azure_key_vault.connection import Connection

PURGE_TRIES, PURGE_PAUSE = 5, 1.0
"""How often, and with how many seconds between, a key is purged that is being deleted."""

VERSION = re.compile(r"[0-9a-f]{32}", re.ASCII)


class Site:
    """What all parts of a target share."""

    def __init__(self, settings: AzureKeyVaultSettings, place: Place, credentials: Path) -> None:
        self.settings = settings
        self.place = place
        self._credentials = credentials
        self._lock = threading.Lock()
        self._made: Connection | None = None

    @property
    def connection(self) -> Connection:
        """Made when it is first needed, and Azure's client loaded with it."""
        with self._lock:
            if self._made is None:
                from broker.targets.azure_key_vault.connection import connect  # noqa: PLC0415 - see the docstring

                self._made = connect(self.settings, self.place, self._credentials)
            return self._made

    def pinned(self, name: str, version: str) -> str:
        """A version that can be one of this service's; it is never asked for "the newest"."""
        if not VERSION.fullmatch(version):
            raise refusals.missing(self.place, name)
        return version

    def delete(self, name: str) -> None:
        """A key with all its versions; purged as well, if that can be done right afterwards."""
        with self.connection.asking("delete", name):
            answer = self.connection.send("DELETE", f"/keys/{name}")
            if answer is not None and answer.status == 403:
                raise WrongState(
                    Reason.TARGET_CANNOT_DELETE,
                    f"{refusals.refusal(answer, self.place, 'delete', name).message} Or delete it by hand: az keyvault "
                    f"key delete {refusals.which(self.place)} --name {name}.",
                )
            if answer is not None and answer.status != 404:
                raise refusals.refusal(answer, self.place, "delete", name)
            if answer is None:
                self._purge(name)

    def _purge(self, name: str) -> None:
        """What was deleted just now; a vault takes seconds for that. Where it cannot be purged it stays deleted."""
        for _ in range(PURGE_TRIES):
            answer = self.connection.send("DELETE", f"/deletedkeys/{name}")
            if answer is None or answer.status not in {404, 409}:
                return
            self.connection.wait(PURGE_PAUSE)

    def remains(self, name: str) -> str:
        """Whatever is deleted there can be recovered until it is purged, by hand or by its time."""
        with self.connection.asking("get", name):
            answer = self.connection.send("GET", f"/deletedkeys/{name}", None)
        if answer is not None and answer.status == 404 and answer.says("KeyNotFound"):
            return ""
        if answer is not None and (answer.status == 429 or answer.status >= 500):
            raise refusals.refusal(answer, self.place, "get", name)
        return refusals.deleted(self.place, name, answer)
