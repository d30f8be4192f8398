"""The import nouns on SoftHSM behind the shim, a SQLite store, and a strict fake of a Key Vault or Managed HSM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.core import ports
from broker.core.imports.handover import Exported
from broker.core.imports.ledger import Imported
from broker.core.model import Key, Terms
from tests.live.imports.bench import Ground
from tests.servers import azure
from tests.servers.azure_key_vault import FakeVault, KeyVersion
from tests.servers.shim import HsmElsewhere


class AzureBench(Ground):
    """A ground with a vault as its target, which is named ``bao`` here as everywhere."""

    kind = azure.KIND

    def __init__(self, vault: FakeVault, hsm: ports.Hsm, folder: Path) -> None:
        self.vault = vault
        super().__init__(hsm, folder, azure.surroundings_of(vault, folder))
        self.settings = {"vault_url": vault.url, "kek": azure.kek_of(vault), "credential": "token-file"}

    def bring(self, key: Key, terms: Terms | None = None, *, remote_name: str = "", request_id: str = "") -> Imported:
        """As ``run``, with terms, and all that it answers."""
        call = self.call("ImportKey", request_id=request_id)
        return self.imports.import_key(call, key.name, 0, "bao", remote_name, terms or Terms())

    def export(self, key: Key, kek: bytes = b"") -> Exported:
        return self.handover.export(self.call("ExportKey"), key.name, 0, "bao", "", kek)

    def confirm(self, key: Key, terms: Terms | None = None) -> Imported:
        return self.handover.confirm(self.call("ConfirmImport"), key.name, 0, "bao", terms=terms or Terms())

    def held(self, key: Key) -> list[KeyVersion]:
        """What the vault has under the key's name, oldest first."""
        return self.vault.versions(key.name)

    def uploads(self, key: Key) -> int:
        """How many uploads with a body came for this key."""
        path = f"/keys/{key.name}"
        return sum(one.method == "PUT" and one.path == path and bool(one.body) for one in self.vault.requests)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[FakeVault]:
    with FakeVault(tmp_path, kind="managed-hsm", now=azure.ticking()) as made:
        made.add_kek()
        yield made


@pytest.fixture
def bench(vault: FakeVault, exact_hsm: HsmElsewhere, tmp_path: Path) -> Iterator[AzureBench]:
    made = AzureBench(vault, exact_hsm, tmp_path)
    made.register()
    yield made
    made.close()
