"""The stand-in for a Managed HSM in a process of its own, which outlives those that are killed; they steer it."""

from __future__ import annotations

import hashlib
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tests.servers.azure import put_kek, ticking
from tests.servers.azure_key_vault import Effect, FakeVault, Refused, forbidden
from tests.servers.softhsm import FRESH

ALWAYS = 1 << 30
REQUESTS = {
    "sign": "POST /keys/{name}/.*/sign$",
    "versions": "GET /keys/{name}/versions",
    "import_key": "PUT /keys/{name}$",
    "disable": "PATCH /keys/{name}/",
    "enable": "PATCH /keys/{name}/",
    "apply": "PATCH /keys/{name}/",
    "create_wrapping_key": "POST /keys/{name}/create$",
}
"""By method of the port: the request that is to go wrong."""

Rule = tuple[Refused | Effect, str]


class VaultAddress(BaseModel):
    """How the vault is reached, and how it is steered."""

    host: str
    url: str
    ca_file: Path
    token_file: Path
    token: str
    kek: str
    kek_thumbprint: str
    steering: str
    key: str


class Steering:
    """The vault's side. Troubles are kept here, by the name of a key, since who asked for them may be killed."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vault-")
        self._vault = FakeVault(Path(self._folder.name), kind="managed-hsm", now=ticking())
        self._vault.__enter__()
        self._kek = put_kek(self._vault)
        self._always: dict[str, list[Rule]] = {}
        self._next: dict[tuple[str, str], Rule] = {}

    def address(self) -> dict[str, Any]:
        """What ``VaultAddress`` takes, but for the steering."""
        vault = self._vault
        return {
            "host": vault.host, "url": vault.url, "ca_file": vault.ca_file, "token_file": vault.token_file,
            "token": vault.token, "kek": self._kek, "kek_public": vault.versions("kek")[-1].public_key,
        }  # fmt: skip

    def keep_other_keys(self, name: str) -> None:
        """Whatever is imported under the name."""
        self._add(name, Effect.OTHER_KEY, f"^PUT /keys/{name}$")

    def keeps_other_keys(self, name: str) -> bool:
        """Whether that is so."""
        return name in self._always

    def deny_always(self, name: str, method: str) -> None:
        """Every such request about the name."""
        self._add(name, forbidden("ForbiddenByRbac"), _request(name, method))

    def deny(self, name: str, method: str) -> None:
        """The next such call."""
        self._next[name, method] = forbidden("ForbiddenByRbac"), _request(name, method)

    def lose(self, name: str, method: str) -> None:
        """Of the next such call nothing is heard; an upload has arrived all the same."""
        effect = Effect.LOSE_ANSWER if method == "import_key" else Effect.CUT
        self._next[name, method] = effect, _request(name, method)

    def begin(self, name: str, method: str) -> None:
        """Such a call is made now."""
        if rule := self._next.pop((name, method), None):
            self._rule(rule, *self._always.get(name, []))

    def end(self, name: str) -> None:
        """It has come to its end."""
        self._rule(*self._always.get(name, []))

    def there(self, name: str) -> list[tuple[str, bytes | None, bool, tuple[str, ...]]]:
        """Of each version, oldest first: its id, public key, whether it is enabled, and what it may be used for."""
        found = self._vault.versions(name)
        return [(one.version, one.public_key, one.enabled, tuple(one.key_ops)) for one in found]

    def close(self) -> None:
        """End it."""
        self._vault.__exit__(None, None, None)
        self._folder.cleanup()

    def _add(self, name: str, what: Refused | Effect, request: str) -> None:
        self._always.setdefault(name, []).append((what, request))
        self._rule(*self._always[name])

    def _rule(self, *rules: Rule) -> None:
        """These are in force and no other; the first that fits a request counts, however often it is repeated."""
        self._vault.faults.clear()
        for what, request in rules:
            self._vault.faults.add(what, on=request, times=ALWAYS)


def _request(name: str, method: str) -> str:
    return "^" + REQUESTS[method].format(name=name)


class _Link(BaseManager):
    """Carries calls to it."""


@cache
def _steering() -> Steering:
    return Steering()


_Link.register("steering", callable=_steering)


@contextmanager
def vault_process() -> Iterator[VaultAddress]:
    """One that runs until this is left."""
    key = secrets.token_bytes(32)
    link = _Link(authkey=key, ctx=FRESH)
    link.start()
    try:
        steering: Any = link.steering()  # type: ignore[attr-defined]  # as registered
        told = steering.address()
        thumbprint = hashlib.sha256(told.pop("kek_public")).hexdigest()
        yield VaultAddress(**told, kek_thumbprint=thumbprint, steering=str(link.address), key=key.hex())
        steering.close()
    finally:
        link.shutdown()


def steered(vault: VaultAddress) -> Any:
    """The ``Steering``, for a process that begins."""
    link = _Link(address=vault.steering, authkey=bytes.fromhex(vault.key))
    link.connect()
    return link.steering()  # type: ignore[attr-defined]  # as registered
