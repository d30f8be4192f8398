"""Fixtures for Azure: the strict fake of a Key Vault Premium and of a Managed HSM, and how a target of it is made."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from broker.core import ports
from broker.targets import PrivateVault, Surroundings, connector
from tests.servers.azure_key_vault import FakeVault
from tests.servers.azure_key_vault.attributes import Attributes

KIND = "azure-key-vault"


def ticking() -> Callable[[], float]:
    """A clock that is a second later each time: a vault keeps whole seconds, and tests do not wait for them."""
    seconds = itertools.count(int(time.time()) - 100_000)
    return lambda: float(next(seconds))


def surroundings_of(vault: FakeVault, credentials: Path) -> Surroundings:
    """What a broker's configuration with this vault as a private one comes to."""
    private = PrivateVault(kind=vault.kind, ca_file=vault.ca_file, token_file=vault.token_file)
    return Surroundings(
        allowed_hosts=frozenset(),
        credentials=credentials,
        private_vaults={vault.host: private},
        credentials_for={f"{vault.host}/token-file": ("*",)},
    )


def target_of(vault: FakeVault, kek: str, credentials: Path, **settings: str) -> Any:
    """The target, as the broker makes it."""
    given = {"vault_url": vault.url, "kek": kek, "credential": "token-file", **settings}
    made: ports.Target = connector(surroundings_of(vault, credentials))("vault", KIND, given)
    return made


@cache
def _kek_material() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def put_kek(vault: FakeVault) -> str:
    """A right KEK named kek, whose key pair all vaults of this process share, since making one is slow; its id."""
    made = vault.shelf.put("kek", "RSA-HSM", _kek_material(), ["import"], Attributes(created=1, updated=1), {})
    return f"{vault.url}/keys/kek/{made.version}"


def _vault(factory: pytest.TempPathFactory, kind: Literal["premium", "managed-hsm"]) -> Iterator[FakeVault]:
    with FakeVault(factory.mktemp(kind), kind=kind, now=ticking()) as vault:
        put_kek(vault)
        yield vault


@pytest.fixture(scope="session")
def shared_premium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeVault]:
    """One Key Vault Premium for the whole run, with a KEK named kek: disturb nothing in it, use names of your own."""
    yield from _vault(tmp_path_factory, "premium")


@pytest.fixture(scope="session")
def shared_managed_hsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeVault]:
    """One Managed HSM for the whole run, likewise."""
    yield from _vault(tmp_path_factory, "managed-hsm")


def kek_of(vault: FakeVault, name: str = "kek") -> str:
    """The versioned id of the newest version of its KEK."""
    return f"{vault.url}/keys/{name}/{vault.versions(name)[-1].version}"
