"""Fixtures for Azure: the strict fake of a Key Vault Premium and of a Managed HSM, and how a target of it is made."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from broker.core import ports
from broker.targets import PrivateVault, Surroundings, connector
from broker.targets.azure_key_vault.fake import FakeVault

KIND = "azure-key-vault"


def ticking() -> Callable[[], float]:
    """A clock that is a second later each time: a vault keeps whole seconds, and tests do not wait for them."""
    seconds = itertools.count(int(time.time()) - 100_000)
    return lambda: float(next(seconds))


def surroundings_of(vault: FakeVault, credentials: Path) -> Surroundings:
    """What a broker's configuration with this vault as a private one comes to."""
    private = PrivateVault(kind=vault.kind, ca_file=vault.ca_file, token_file=vault.token_file)
    return Surroundings(allowed_hosts=frozenset(), credentials=credentials, private_vaults={vault.host: private})


def target_of(vault: FakeVault, kek: str, credentials: Path, **settings: str) -> Any:
    """The target, as the broker makes it."""
    given = {"vault_url": vault.url, "kek": kek, "credential": "token-file", **settings}
    made: ports.Target = connector(surroundings_of(vault, credentials))(KIND, given)
    return made


def _vault(factory: pytest.TempPathFactory, kind: Literal["premium", "managed-hsm"]) -> Iterator[FakeVault]:
    with FakeVault(factory.mktemp(kind), kind=kind, now=ticking()) as vault:
        vault.add_kek()
        yield vault


@pytest.fixture(scope="session")
def shared_premium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeVault]:
    """One Key Vault Premium for the whole run, with a KEK named kek: spoil nothing in it, use names of your own."""
    yield from _vault(tmp_path_factory, "premium")


@pytest.fixture(scope="session")
def shared_managed_hsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeVault]:
    """One Managed HSM for the whole run, likewise."""
    yield from _vault(tmp_path_factory, "managed-hsm")


def kek_of(vault: FakeVault, name: str = "kek") -> str:
    """The versioned id of the newest version of its KEK."""
    return f"{vault.url}/keys/{name}/{vault.versions(name)[-1].version}"
