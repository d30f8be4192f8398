"""Every key type for both kinds of vault: the vault takes the file, and openssl alone opens the same one."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from azure.keyvault.keys import JsonWebKey
from cryptography.hazmat.primitives.asymmetric import rsa

from broker.core.errors import InvalidRequest
from broker.core.kinds import ImportState, KeyType
from broker.core.model import Key, KeyVersion
from tests.live.hsm.openssl import opened_by_openssl, public_key_by_openssl
from tests.live.imports.bench import Ground
from tests.servers import azure
from tests.servers.azure_key_vault import FakeVault
from tests.servers.fake_azure import key_client
from tests.servers.shim import HsmElsewhere

FORMS = {
    KeyType.RSA_2048: ("RSA-HSM", None), KeyType.RSA_3072: ("RSA-HSM", None), KeyType.RSA_4096: ("RSA-HSM", None),
    KeyType.EC_P256: ("EC-HSM", "P-256"), KeyType.EC_P384: ("EC-HSM", "P-384"), KeyType.EC_P521: ("EC-HSM", "P-521"),
    KeyType.EC_SECP256K1: ("EC-HSM", "P-256K"), KeyType.AES_128: ("oct-HSM", None), KeyType.AES_256: ("oct-HSM", None),
}  # fmt: skip


class BothKinds(Ground):
    """A ground with a Key Vault and a Managed HSM as its targets."""

    kind = azure.KIND

    def __init__(self, premium: FakeVault, managed: FakeVault, hsm: HsmElsewhere, folder: Path) -> None:
        self.vaults = {"premium": premium, "managed": managed}
        places = [azure.surroundings_of(vault, folder) for vault in self.vaults.values()]
        private = {host: vault for place in places for host, vault in place.private_vaults.items()}
        bound = {name: targets for place in places for name, targets in place.credentials_for.items()}
        super().__init__(hsm, folder, replace(places[0], private_vaults=private, credentials_for=bound))
        for name, vault in self.vaults.items():
            self.settings = {"vault_url": vault.url, "kek": azure.kek_of(vault), "credential": "token-file"}
            self.register(name)

    def carried(self, key: Key, target: str) -> bytes:
        """The key's transfer file, after Microsoft's client has imported it there and the broker has proven it."""
        handover, vault = self.handover, self.vaults[target]
        file = handover.export(self.call("ExportKey"), key.name, 0, target, "").transfer_file
        kty, curve = FORMS[key.type]
        with key_client(vault) as client:
            client.import_key(key.name, JsonWebKey(kty=kty, crv=curve, t=file), hardware_protected=True)
        row = handover.confirm(self.call("ConfirmImport"), key.name, 0, target).row
        assert row.state is ImportState.PROVEN
        return file


@pytest.fixture
def ground(
    shared_premium: FakeVault, shared_managed_hsm: FakeVault, exact_hsm: HsmElsewhere, tmp_path: Path
) -> Iterator[BothKinds]:
    made = BothKinds(shared_premium, shared_managed_hsm, exact_hsm, tmp_path)
    yield made
    made.close()


def opened(vault: FakeVault, file: bytes, folder: Path) -> bytes:
    """The plaintext in a transfer file, by the specification and openssl; the project reads nothing of it."""
    parts = json.loads(file)
    assert (parts["schema_version"], parts["header"]["alg"], parts["header"]["enc"]) == (
        "1.0.0", "dir", "CKM_RSA_AES_KEY_WRAP",
    )  # fmt: skip
    text = parts["ciphertext"]
    kek = next(one for one in vault.versions("kek") if parts["header"]["kid"].endswith(f"/keys/kek/{one.version}"))
    assert isinstance(kek.material, rsa.RSAPrivateKey)
    return opened_by_openssl(kek.material, base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), folder)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("key_type", FORMS)
def test_the_vault_and_openssl_open_the_same_file(ground: BothKinds, tmp_path: Path, key_type: KeyType) -> None:
    key = ground.key(key_type)
    held = ground.store.get(KeyVersion, key.name, 1)
    assert held is not None
    for target, vault in ground.vaults.items():
        if key_type.symmetric and target == "premium":
            with pytest.raises(InvalidRequest, match="only be imported to a Managed HSM"):
                ground.carried(key, target)
            continue
        plaintext = opened(vault, ground.carried(key, target), tmp_path)
        (there,) = vault.versions(key.name)
        if key_type.symmetric:
            assert (plaintext, len(plaintext) * 8) == (there.material, int(key_type.removeprefix("aes-")))
        else:
            assert public_key_by_openssl(plaintext) == held.public_key == there.public_key
