"""Where each kind of target can be tried, and the HSM whose keys go there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker.core import ports
from broker.core.errors import InvalidRequest
from broker.core.kinds import KeyType, KeyUsage, OaepHash
from broker.core.model import RemoteKey, WrappingKey
from broker.core.ports import Cargo, KeyRef, Offer
from broker.targets import Surroundings, connector
from broker.targets.vault.policy import policy
from tests.contracts.hsm.keys import made, shared, unmade
from tests.fakes.fresh_keys import KIND as FRESH_KEYS
from tests.fakes.fresh_keys import FreshKeys
from tests.fakes.hsm import SoftwareHsm
from tests.servers import azure
from tests.servers.openbao import OpenBao

REAL = {
    setting: os.environ.get(f"BROKER_TEST_AZURE_{setting.upper()}", "")
    for setting in ("vault_url", "kek", "credential", "tenant_id", "client_id", "file")
}
"""A real vault or Managed HSM; docs/azure.md says which rights it takes."""

CREDENTIALS = os.environ.get("BROKER_TEST_AZURE_CREDENTIALS", "")


@dataclass(frozen=True, slots=True)
class Place:
    """A target of one kind, an HSM, and names that nobody else uses."""

    port: ports.Target
    hsm: ports.Hsm
    let_delete: Callable[[], object] = lambda: None  # from then on the credential may delete keys, if it could not
    own_clock: bool = True  # False: two versions may be made in the same second, which is all that is kept there

    def generated(self, key_type: KeyType, usage: KeyUsage) -> KeyRef:
        return made(self.hsm, unmade(key_type, usage), exportable=True)

    def shared(self, key_type: KeyType, usage: KeyUsage) -> KeyRef:
        """A key that other tests have imported too, under other names."""
        return shared(self.hsm, key_type, usage, exportable=True)

    def offer(self, cargo: Cargo) -> Offer:
        """What the core would wrap for."""
        return self.port.offer(cargo) if self.port.fresh else self.port.offer()

    def wrapped(self, key: KeyRef, kek: WrappingKey) -> tuple[bytes, OaepHash]:
        chosen = self.port.oaep_hash(self.hsm.report().oaep_hashes)
        return self.hsm.wrap(key, kek, chosen, exact=self.port.exact_wrap), chosen

    def imported(self, key: KeyRef, name: str = "", *, first: bool = True) -> RemoteKey:
        name = name or fresh()
        cargo = cargo_of(key, name, first=first)
        offer = self.offer(cargo)
        blob, chosen = self.wrapped(key, offer.key)
        self.port.import_key(cargo, blob, chosen, offer.token)
        return self.port.versions(name)[-1]

    def takes(self, key_type: KeyType, usage: KeyUsage) -> bool:
        """Whether such a key can be imported; a refusal must say that it is the type."""
        try:
            self.port.supports(key_type, usage)
        except InvalidRequest as refusal:
            told = (refusal.reason, key_type in refusal.message)
        else:
            return True
        assert told == ("KEY_TYPE_UNSUPPORTED", True)
        return False


def cargo_of(key: KeyRef, name: str, *, first: bool = True) -> Cargo:
    return Cargo(name=name, type=key.type, usage=key.usage, first=first)


def fresh() -> str:
    return f"c-{secrets.token_hex(6)}"


def _vault(request: pytest.FixtureRequest, folder: Path) -> Place:
    server: OpenBao = request.getfixturevalue("openbao")
    server.write_token(folder)
    settings = {
        "address": server.address, "mount": server.mount, "ca_pem": server.ca_pem, "token_file": "vault-token",
    }  # fmt: skip
    connect = connector(Surroundings(allowed_hosts=frozenset({server.host}), credentials=folder))
    port = connect("vault-token", "vault", settings)
    return Place(
        port, request.getfixturevalue("hsm"), let_delete=lambda: server.write_token(folder, token=deleter(server))
    )


def deleter(server: OpenBao) -> str:
    """A token that may delete the copies of destroyed keys too."""
    return server.token_for(policy(server.mount, deletes=True), "deleter")


def _premium(request: pytest.FixtureRequest, folder: Path) -> Place:
    vault = request.getfixturevalue("shared_premium")
    return Place(azure.target_of(vault, azure.kek_of(vault), folder), request.getfixturevalue("exact_hsm"))


def _managed_hsm(request: pytest.FixtureRequest, folder: Path) -> Place:
    vault = request.getfixturevalue("shared_managed_hsm")
    return Place(azure.target_of(vault, azure.kek_of(vault), folder), request.getfixturevalue("exact_hsm"))


def _real_azure(request: pytest.FixtureRequest, folder: Path) -> Place:
    host = REAL["vault_url"].removeprefix("https://").rstrip("/") + ":443"
    surroundings = Surroundings(allowed_hosts=frozenset({host}), credentials=Path(CREDENTIALS or folder))
    return Place(
        connector(surroundings)("azure", azure.KIND, REAL), request.getfixturevalue("exact_hsm"), own_clock=False
    )


IN_MEMORY = SoftwareHsm()


def _fresh_keys(_: pytest.FixtureRequest, __: Path) -> Place:
    return Place(FreshKeys(), IN_MEMORY)


PLACES: dict[str, tuple[str, Callable[[pytest.FixtureRequest, Path], Place]]] = {
    "openbao": ("vault", _vault),
    "premium": (azure.KIND, _premium),
    "managed-hsm": (azure.KIND, _managed_hsm),
    "fresh-keys": (FRESH_KEYS, _fresh_keys),
    **({"azure": (azure.KIND, _real_azure)} if REAL["vault_url"] else {}),
}
"""By name: the kind of target, and how it is reached."""
