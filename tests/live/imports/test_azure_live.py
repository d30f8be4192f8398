"""Azure as a target of the running broker, through the wire and the command line."""

from __future__ import annotations

import json
import secrets
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from azure.keyvault.keys import JsonWebKey
from azure.keyvault.keys.crypto import SignatureAlgorithm
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from tests.servers.azure_key_vault import Effect, FakeVault, throttled
from tests.servers.fake_azure import crypto_client, key_client
from tests.servers.live import Client, cli
from tests.servers.live_azure import AzureLive, settings_of

RSA_2048, EC_P256, AES_256 = 1, 4, 10
SIGN, ENCRYPT = 1, 2
PROVEN = 2


@pytest.fixture(scope="module")
def admin(azure_live: AzureLive) -> Client:
    return azure_live.client()


def fresh(admin: Client, key_type: int = EC_P256, usage: int = SIGN) -> str:
    name = f"k-{secrets.token_hex(5)}"
    admin.ask("CreateKey", name=name, type=key_type, usage=usage, exportable=True)
    return name


def imported(answer: Any) -> Any:
    return getattr(answer, "import")


def usable(vault: FakeVault, name: str) -> list[str]:
    return [one.version for one in vault.versions(name) if one.enabled]


def uploads(vault: FakeVault, name: str) -> int:
    return sum(one.method == "PUT" and one.path == f"/keys/{name}" and bool(one.body) for one in vault.requests)


def test_a_target_is_shown_with_the_kek_that_was_made_for_it(azure_live: AzureLive, admin: Client) -> None:
    target = admin.ask("GetTarget", name="hsm").target
    (kek,) = azure_live.hsm.versions("kek")
    assert target.azure_key_vault.kek == target.kek_id == f"{azure_live.hsm.url}/keys/kek/{kek.version}"
    assert (kek.key_ops, kek.kty) == (["import"], "RSA-HSM")
    again = admin.refusal(
        "CreateTarget", name="twice", azure_key_vault=settings_of(azure_live.hsm, "kek"), create_kek=True
    )
    assert again.reason == "TARGET_KEK_EXISTS"
    found = {one.name: one.passed for one in admin.ask("CheckTarget", name="hsm").findings}
    assert found == {"reachable": True, "authorised": True, "kek": True, "wrap": True, "copies": True}


def test_a_signature_made_at_azure_verifies_with_the_hsms_public_key(azure_live: AzureLive, admin: Client) -> None:
    name = fresh(admin, RSA_2048)
    for target, vault in (("premium", azure_live.premium), ("hsm", azure_live.hsm)):
        row = imported(admin.ask("ImportKey", name=name, target=target))
        assert row.state == PROVEN
        digest = Hash(SHA256())
        digest.update(b"pay 10 to bob")
        hashed = digest.finalize()
        with crypto_client(vault, f"{vault.url}/keys/{name}/{row.remote_version}") as there:
            signature = there.sign(SignatureAlgorithm.rs256, hashed).signature
        public = load_pem_public_key(admin.ask("GetPublicKey", name=name).pem.encode())
        assert isinstance(public, rsa.RSAPublicKey)
        public.verify(signature, hashed, padding.PKCS1v15(), Prehashed(SHA256()))


def test_aes_goes_to_a_managed_hsm_and_nowhere_else(azure_live: AzureLive, admin: Client) -> None:
    name = fresh(admin, AES_256, ENCRYPT)
    assert imported(admin.ask("ImportKey", name=name, target="hsm")).state == PROVEN
    assert admin.refusal("ImportKey", name=name, target="premium").reason == "KEY_TYPE_UNSUPPORTED"
    assert uploads(azure_live.premium, name) == 0


def test_BY_06_callers_at_once_make_one_version(azure_live: AzureLive, admin: Client) -> None:
    name = fresh(admin)
    with ThreadPoolExecutor(4) as pool:  # as many as one caller may have under way
        rows = list(pool.map(lambda _: imported(admin.ask("ImportKey", name=name, target="hsm")), range(4)))
    assert usable(azure_live.hsm, name) == list({row.remote_version for row in rows})
    assert uploads(azure_live.hsm, name) == 1


@pytest.mark.parametrize("key_type", [(EC_P256, SIGN), (AES_256, ENCRYPT)])
def test_BY_15_a_lost_answer_is_settled_by_reading_back(
    azure_live: AzureLive, admin: Client, key_type: tuple[int, int]
) -> None:
    name = fresh(admin, *key_type)
    azure_live.hsm.faults.add(Effect.LOSE_ANSWER, on=f"^PUT /keys/{name}")
    assert imported(admin.ask("ImportKey", name=name, target="hsm")).state == PROVEN
    assert (len(usable(azure_live.hsm, name)), uploads(azure_live.hsm, name)) == (1, 1)


def test_the_command_line_waits_for_a_throttled_vault_and_says_so(azure_live: AzureLive, admin: Client) -> None:
    name = fresh(admin)
    azure_live.hsm.faults.add(throttled(1), on=f"^PUT /keys/{name}", times=2)  # the broker itself waits once
    hasty = cli("key", "import", name, "--target", "hsm", "--no-wait", profile=azure_live.profile)
    assert (hasty.returncode, "TARGET_THROTTLED" in hasty.stderr) == (5, True)
    azure_live.hsm.faults.add(throttled(1), on=f"^PUT /keys/{name}", times=2)  # the broker itself waits once
    patient = cli("key", "import", name, "--target", "hsm", "--tag", "team=pay", profile=azure_live.profile)
    assert patient.returncode == 0, patient.stderr
    assert "The vault asks to wait 1 s" in patient.stderr
    (held,) = azure_live.hsm.versions(name)
    assert (held.enabled, held.tags) == (True, {"team": "pay"})


def test_a_deleted_name_is_told_with_what_helps(azure_live: AzureLive, admin: Client) -> None:
    first, second = fresh(admin), fresh(admin)
    admin.ask("ImportKey", name=first, target="hsm")
    with key_client(azure_live.hsm) as client:
        client.begin_delete_key(first).result()
    error = admin.refusal("ImportKey", name=second, target="hsm", remote_name=first)
    assert error.reason == "TARGET_NAME_DELETED"
    assert "az keyvault key recover" in error.sentence


def test_a_key_is_carried_by_hand(azure_live: AzureLive, admin: Client, tmp_path: Path) -> None:
    name, file = fresh(admin), tmp_path / "pay.byok"
    count = len(azure_live.broker.records())
    out = cli("key", "export", name, "--target", "hsm", "--out", str(file), profile=azure_live.profile)
    assert out.returncode == 0, out.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    early = cli("key", "confirm", name, "--target", "hsm", profile=azure_live.profile)
    assert (early.returncode, "REMOTE_KEY_MISSING" in early.stderr) == (7, True)
    jwk = JsonWebKey(kty="EC-HSM", crv="P-256", key_ops=["sign", "verify"], t=file.read_bytes())
    with key_client(azure_live.hsm) as client:
        client.import_key(name, jwk, hardware_protected=True)
    done = cli("key", "confirm", name, "--target", "hsm", "--format", "json", profile=azure_live.profile)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "proven"
    told = [(one["rpc"], one["outcome"], one["reason"]) for one in azure_live.broker.since(count)]
    assert told == [
        ("ImportService/ExportKey", "ok", ""),
        ("ImportService/ConfirmImport", "FAILED_PRECONDITION", "REMOTE_KEY_MISSING"),
        ("ImportService/ConfirmImport", "ok", ""),
    ]
    assert cli("audit", "verify", str(azure_live.broker.folder / "journal"), "--public-key",
               str(azure_live.broker.folder / "certificates" / "audit.pem")).returncode == 0  # fmt: skip


def test_the_doctor_points_at_private_vaults(azure_live: AzureLive) -> None:
    found = cli("doctor", "--config", str(azure_live.broker.config), "--format", "json")
    checks = {one["name"]: one for one in json.loads(found.stdout)}
    assert checks["targets"]["status"] == "warning"
    for vault in (azure_live.premium, azure_live.hsm):
        assert vault.host in checks["targets"]["detail"]


CKA_VALUE, CKA_SENSITIVE, CKA_WRAP = 0x11, 0x103, 0x106
CKA_PRIVATE = {CKA_VALUE, *range(0x123, 0x129)}  # exponent, primes and what follows from them
CKA_OTHER_USES = (0x104, 0x105, 0x107, 0x108, 0x10A)  # encrypt, decrypt, unwrap, sign, verify


def test_BY_11_no_value_is_read_and_the_ephemeral_key_only_wraps_and_is_destroyed(
    azure_live: AzureLive, admin: Client
) -> None:
    shim = azure_live.shim
    shim.forget()
    name = fresh(admin)
    admin.ask("ImportKey", name=name, target="hsm")
    calls = shim.calls()
    read = {one for call in calls if call.function == "C_GetAttributeValue" for one in call.template()}
    assert read
    assert not read & CKA_PRIVATE
    (generated,) = [call for call in calls if call.function == "C_GenerateKeyPair"]
    assert generated.template(1)[CKA_SENSITIVE] == 1
    (ephemeral,) = [call for call in calls if call.function == "C_GenerateKey"]
    given = ephemeral.template()
    assert (given[CKA_WRAP], given[CKA_SENSITIVE]) == (1, 1)
    assert not any(given.get(use) for use in CKA_OTHER_USES)
    destroyed = {one[0] for call in calls if call.function == "C_DestroyObject" for one in call.objects}
    assert set(ephemeral.made) <= destroyed
    said = azure_live.broker.said + json.dumps(azure_live.broker.records())
    assert azure_live.hsm.token not in said
