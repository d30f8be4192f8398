"""The whole broker as a process of its own, on SoftHSM behind the shim, with two fakes of Azure as its targets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from broker.targets.azure_key_vault.kek import KEK_BITS
from tests.servers.azure import put_kek, ticking
from tests.servers.azure_key_vault import FakeVault
from tests.servers.live import Client, Live
from tests.servers.shim import Shim, build_shim


@dataclass(frozen=True, slots=True)
class AzureLive:
    """A running broker with the targets ``premium`` and ``hsm``, whose KEKs it has made itself."""

    broker: Live
    premium: FakeVault
    hsm: FakeVault

    @property
    def shim(self) -> Shim:
        return Shim(self.broker.folder)

    def client(self) -> Client:
        return self.broker.client()

    @property
    def profile(self) -> Path:
        return self.broker.folder / "profile"


def settings_of(vault: FakeVault, kek: str) -> dict[str, str]:
    return {"vault_url": vault.url, "kek": kek, "credential": "token-file"}


def _configure(broker: Live, hsm: dict[str, float], *vaults: FakeVault) -> None:
    """Put the shim before the token, and the vaults among the private ones."""
    text = broker.config.read_text()
    module = next(line for line in text.splitlines() if line.startswith("module = "))
    shim = {
        "PKCS11_SHIM_MODULE": json.loads(module.partition(" = ")[2]),
        "PKCS11_SHIM_CONTROL": str(broker.folder / "shim.control"),
        "PKCS11_SHIM_LOG": str(broker.folder / "shim.log"),
    }
    text = text.replace(module, f"module = {json.dumps(str(build_shim()))}")
    text = _with(_with(text, "[hsm]", hsm), "[hsm.environment]", shim)
    for vault in vaults:
        text += "\n[[targets.private_vaults]]\n" + _lines({
            "host": vault.host, "kind": vault.kind, "ca_file": str(vault.ca_file), "token_file": str(vault.token_file),
            "targets": ["*"],
        })  # fmt: skip
    broker.config.write_text(text)


def _with(text: str, section: str, settings: dict[str, Any]) -> str:
    assert section in text
    return text.replace(section, f"{section}\n{_lines(settings)}", 1)


def _lines(settings: dict[str, Any]) -> str:
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())


@contextmanager
def azure_house(folder: Path, *options: str, create_kek: bool = True, **hsm: float) -> Iterator[AzureLive]:
    """A running one, made with ``options`` of `init`; ``hsm``: further settings of its token.

    Without ``create_kek`` the vaults have small ones.
    """
    broker = Live(folder / "broker", *options)
    for name in ("premium", "hsm"):
        (folder / name).mkdir()
    with (
        FakeVault(folder / "premium", now=ticking()) as premium,
        FakeVault(folder / "hsm", kind="managed-hsm", now=ticking()) as managed,
    ):
        try:
            broker.start()
            broker.terminate()
            _configure(broker, hsm, premium, managed)
            broker.start()
            with broker.client() as admin:
                for name, vault in (("premium", premium), ("hsm", managed)):
                    if create_kek:
                        vault.stock(KEK_BITS)
                    settings = settings_of(vault, "kek" if create_kek else put_kek(vault))
                    admin.ask("CreateTarget", name=name, azure_key_vault=settings, create_kek=create_kek)
            yield AzureLive(broker, premium, managed)
        finally:
            broker.close()


@pytest.fixture(scope="session")
def azure_live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureLive]:
    """One for the whole run: use names of your own, and disturb only requests about them."""
    with azure_house(tmp_path_factory.mktemp("azure-live")) as house:
        yield house
