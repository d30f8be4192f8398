"""What may be registered as a vault or Managed HSM, and which challenges and answers it may give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broker.config import TargetsConfig
from broker.core.errors import BrokerError, InvalidRequest, Unavailable, WrongState
from broker.targets import PrivateVault, Surroundings, connector
from broker.targets.azure_key_vault import clouds, refusals
from broker.targets.azure_key_vault.challenge import check_challenge
from broker.targets.azure_key_vault.clouds import Place
from broker.targets.azure_key_vault.settings import AzureKeyVaultSettings
from tests.fakes.refusals import refused

TENANT, CLIENT = "11111111-2222-3333-4444-555555555555", "66666666-7777-8888-9999-000000000000"
VAULT = "https://team-keys.vault.azure.net"
VERSION = "0123456789abcdef0123456789abcdef"
GIVEN = {
    "vault_url": VAULT, "kek": f"{VAULT}/keys/kek/{VERSION}", "credential": "workload-identity", "tenant_id": TENANT,
    "client_id": CLIENT,
}  # fmt: skip


def surroundings(*hosts: str, private: str = "") -> Surroundings:
    vault = PrivateVault(kind="premium", ca_file=Path("ca.pem"), token_file=Path("token"))
    vaults = {private: vault} if private else {}
    return Surroundings(allowed_hosts=frozenset(hosts), credentials=Path("credentials"), private_vaults=vaults)


def denied(changes: dict[str, str], *hosts: str, private: str = "") -> BrokerError:
    connect = connector(surroundings(*hosts, private=private))
    return refused(lambda: connect("hsm", "azure-key-vault", {**GIVEN, **changes}), InvalidRequest)


def placed(changes: dict[str, str], *hosts: str) -> Place:
    return clouds.locate(AzureKeyVaultSettings.model_validate({**GIVEN, **changes}), surroundings(*hosts))


@pytest.mark.parametrize(("host", "tier", "resource", "login"), [
    ("team-keys.vault.azure.net", "premium", "https://vault.azure.net", "login.microsoftonline.com"),
    ("team-hsm.managedhsm.azure.net", "managed-hsm", "https://managedhsm.azure.net", "login.microsoftonline.com"),
    ("k.vault.usgovcloudapi.net", "", "", ""),
    ("gov.vault.usgovcloudapi.net", "premium", "https://vault.usgovcloudapi.net", "login.microsoftonline.us"),
    ("gov.managedhsm.usgovcloudapi.net", "managed-hsm", "https://managedhsm.usgovcloudapi.net",
     "login.microsoftonline.us"),
    ("dong.vault.azure.cn", "premium", "https://vault.azure.cn", "login.partner.microsoftonline.cn"),
    ("dong.managedhsm.azure.cn", "", "", ""),
])  # fmt: skip
def test_each_cloud_has_its_own_resource_and_login(host: str, tier: str, resource: str, login: str) -> None:
    changes = {"vault_url": f"https://{host}", "kek": "kek"}
    if not tier:
        assert denied(changes, f"{host}:443").reason == "TARGET_HOST_NOT_ALLOWED"
        return
    place = placed(changes, f"{host}:443")
    assert (place.tier, place.resource, place.logins[0]) == (tier, resource, login)
    assert (place.scope, place.host, place.tenant) == (f"{resource}/.default", f"{host}:443", TENANT)


@pytest.mark.parametrize("url", [
    "https://team-keys.vault.azure.net.evil.example", "https://evil.example", "https://team-keys.vault.azure.net:8443",
    "https://a.team-keys.vault.azure.net", "https://vault.azure.net", "https://xn--80ak6aa92e.vault.azure.net",
    "https://10.0.0.1", "https://team_keys.vault.azure.net",
    "https://team-keys-with-a-name-that-is-too-long.vault.azure.net", "https://-team.vault.azure.net",
])  # fmt: skip
def test_BY_03_a_host_that_only_looks_like_a_vault_is_refused_even_where_it_is_allowed(url: str) -> None:
    host = url.removeprefix("https://")
    allowed = host if ":" in host else f"{host}:443"
    assert denied({"vault_url": url, "kek": "kek"}, allowed).reason in {
        "TARGET_HOST_NOT_ALLOWED", "TARGET_SETTINGS_INVALID",
    }  # fmt: skip


@pytest.mark.parametrize("url", [
    "http://team-keys.vault.azure.net", "https://user@team-keys.vault.azure.net", "https://team-keys.vault.azure.net/keys/kek",
    "https://team-keys.vault.azure.net/x", "https://team-keys.vault.azure.net?x", "https://team-keys.vault.azure.net#",
    "https://team-keys.vault.azure.net\\@evil.example", "https://team-keys.vault.azure.net\n", "team-keys",
    "https://tеam-keys.vault.azure.net", "",
])  # fmt: skip
def test_BY_03_what_is_no_plain_address_is_refused(url: str) -> None:
    error = denied({"vault_url": url, "kek": "kek"}, "team-keys.vault.azure.net:443")
    assert error.reason == "TARGET_SETTINGS_INVALID"
    assert "evil" not in error.message


def test_BY_03_a_vault_that_the_configuration_does_not_name_is_refused() -> None:
    assert denied({}).reason == "TARGET_HOST_NOT_ALLOWED"
    assert denied({}, "other.vault.azure.net:443", "team-keys.vault.azure.net:8443").reason == "TARGET_HOST_NOT_ALLOWED"
    assert placed({}, "team-keys.vault.azure.net:443").url == VAULT
    assert placed({"vault_url": f"{VAULT}:443/"}, "team-keys.vault.azure.net:443").url == VAULT


def test_BY_02_a_kek_of_another_vault_or_without_a_right_id_is_refused() -> None:
    host = "team-keys.vault.azure.net:443"
    assert "another vault" in denied({"kek": f"https://other.vault.azure.net/keys/kek/{VERSION}"}, host).message
    for kek in (f"{VAULT}/keys/kek", f"{VAULT}/keys/kek/latest", f"{VAULT}/secrets/kek/{VERSION}", "a/b", "", "k k"):
        assert denied({"kek": kek}, host).reason == "TARGET_SETTINGS_INVALID"


@pytest.mark.parametrize("changes", [
    {"tenant_id": ""}, {"client_id": ""}, {"tenant_id": "contoso.onmicrosoft.com"}, {"client_id": "*"},
    {"credential": "client-secret"}, {"credential": "client-certificate"},
    {"credential": "client-secret", "file": "../x"},
    {"credential": "managed-identity", "file": "x"}, {"credential": "default"}, {"credential": "token-file"},
    {"secret": "s.canary"},
])  # fmt: skip
def test_a_credential_is_named_whole_and_holds_no_secret(changes: dict[str, str]) -> None:
    error = denied(changes, "team-keys.vault.azure.net:443")
    assert error.reason == "TARGET_SETTINGS_INVALID"
    assert "canary" not in error.message


def test_a_private_vault_is_allowed_by_its_entry_and_takes_a_token_file_only() -> None:
    here = "https://vault.private.example:8443"
    changes = {"vault_url": here, "kek": "kek"}
    assert denied(changes, private="vault.private.example:8443").reason == "TARGET_SETTINGS_INVALID"
    around = surroundings(private="vault.private.example:8443")
    settings = AzureKeyVaultSettings.model_validate({"vault_url": here, "kek": "kek", "credential": "token-file"})
    place = clouds.locate(settings, around)
    assert (place.host, place.tier, place.resource, place.logins) == ("vault.private.example:8443", "premium", here, ())


def test_the_configuration_names_each_private_vault_once() -> None:
    entry = {"host": "127.0.0.1:8443", "kind": "managed-hsm", "ca_file": "/ca.pem", "token_file": "/token"}
    read = TargetsConfig.model_validate({"credentials": "/credentials", "private_vaults": [entry]})
    assert read.private_vaults[0].host == "127.0.0.1:8443"
    wrong: list[list[dict[str, Any]]] = [
        [entry, entry], [{**entry, "host": "https://127.0.0.1:8443"}], [{**entry, "kind": "standard"}],
        [{**entry, "token_file": "token"}], [{**entry, "verify": False}],
    ]  # fmt: skip
    for vaults in wrong:
        with pytest.raises(ValueError, match="private_vaults"):
            TargetsConfig.model_validate({"credentials": "/credentials", "private_vaults": vaults})


# ---- challenges ----------------------------------------------------------------------------------------------------

CLOUD = Place(
    url=VAULT, host="team-keys.vault.azure.net:443", tier="premium", resource="https://vault.azure.net",
    logins=("login.microsoftonline.com", "login.windows.net"), tenant=TENANT,
)  # fmt: skip
ISSUER = f'authorization="https://login.microsoftonline.com/{TENANT}"'


@pytest.mark.parametrize("header", [
    f'Bearer {ISSUER}, resource="https://vault.azure.net"',
    f'Bearer authorization="https://login.windows.net/{TENANT}", resource="https://vault.azure.net"',
    f'Bearer {ISSUER}, scope="https://vault.azure.net/.default"',
    f'Bearer {ISSUER.replace("authorization", "authorization_uri")}, error="insufficient_claims", claims="e30="',
])  # fmt: skip
def test_a_challenge_of_this_vault_is_taken(header: str) -> None:
    check_challenge(header, CLOUD)


@pytest.mark.parametrize("header", [
    f'Bearer {ISSUER}, resource="https://vault.azure.net.evil.example"',
    f'Bearer {ISSUER}, resource="https://graph.microsoft.com"',
    f'Bearer {ISSUER}, resource="https://managedhsm.azure.net"',
    f'Bearer {ISSUER}, scope="https://vault.azure.net/.default https://graph.microsoft.com/.default"',
    f'Bearer {ISSUER}, resource="https://vault.azure.net", resource="https://graph.microsoft.com"',
    f'Bearer {ISSUER}, error_description="a, resource=https://graph.microsoft.com", resource="https://vault.azure.net"',
    f'Bearer authorization="https://evil.example/{TENANT}", resource="https://vault.azure.net"',
    f'Bearer authorization="https://login.microsoftonline.com.evil.example/{TENANT}", resource="https://vault.azure.net"',
    f'Bearer authorization="http://login.microsoftonline.com/{TENANT}", resource="https://vault.azure.net"',
    f'Bearer authorization="https://login.microsoftonline.com/{CLIENT}", resource="https://vault.azure.net"',
    'Bearer authorization="https://login.microsoftonline.com/common", resource="https://vault.azure.net"',
    f'Bearer {ISSUER}, authorization_uri="https://evil.example/{TENANT}", resource="https://vault.azure.net"',
    f"Bearer {ISSUER}", 'Bearer resource="https://vault.azure.net"', "Bearer", "", "Basic realm=x",
    f'PoP {ISSUER}, resource="https://vault.azure.net"',
])  # fmt: skip
def test_BY_04_a_challenge_for_anything_else_is_refused(header: str) -> None:
    with pytest.raises(WrongState) as caught:
        check_challenge(header, CLOUD)
    assert caught.value.reason == "TARGET_CHALLENGE_REFUSED"
    assert "evil" not in caught.value.message


# ---- answers -------------------------------------------------------------------------------------------------------


def body(code: str, inner: str = "") -> bytes:
    more = f', "innererror": {{"code": "{inner}"}}' if inner else ""
    return f'{{"error": {{"code": "{code}", "message": "text of the service"{more}}}}}'.encode()


def told(status: int, content: bytes = b"", right: str = "import", **headers: str) -> BrokerError:
    answer = refusals.answered(status, content, {name.replace("_", "-"): value for name, value in headers.items()})
    return refusals.refusal(answer, CLOUD, right, "web")


@pytest.mark.parametrize(("status", "content", "kind", "reason", "helps"), [
    (400, body("BadParameter"), WrongState, "TARGET_REFUSED", "BadParameter"),
    (401, body("Unauthorized"), WrongState, "TARGET_DENIED", "tenant"),
    (403, body("Forbidden", "AccessDenied"), WrongState, "TARGET_DENIED", "--key-permissions import"),
    (403, body("Forbidden", "ForbiddenByRbac"), WrongState, "TARGET_DENIED", "Key Vault Crypto Officer"),
    (403, body("Forbidden", "ForbiddenByFirewall"), WrongState, "TARGET_FIREWALL", "az keyvault network-rule add"),
    (403, body("Forbidden", "KeyDisabled"), WrongState, "KEK_UNSUITABLE", "--enabled true"),
    (404, body("KeyNotFound"), WrongState, "REMOTE_KEY_MISSING", "web"),
    (408, b"", Unavailable, "TARGET_UNREACHABLE", "not ready"),
    (409, body("Conflict", "ObjectIsDeletedButRecoverable"), WrongState, "TARGET_NAME_DELETED",
     "az keyvault key recover --vault-name team-keys --name web"),
    (409, body("Conflict", "ObjectIsDeletedButRecoverable"), WrongState, "TARGET_NAME_DELETED", "purge protection"),
    (409, body("Conflict", "ObjectIsBeingDeleted"), Unavailable, "TARGET_CONFLICT", "being deleted"),
    (409, body("ConflictError"), Unavailable, "TARGET_CONFLICT", "ConflictError"),
    (429, body("Throttled"), Unavailable, "TARGET_THROTTLED", "again"),
    (500, b"<html>text of the service</html>", Unavailable, "TARGET_UNREACHABLE", "status 500"),
    (503, body("ServiceUnavailable"), Unavailable, "TARGET_UNREACHABLE", "ServiceUnavailable"),
    (302, b"", Unavailable, "TARGET_UNREACHABLE", "redirects"),
    (418, body("x" * 200), WrongState, "TARGET_REFUSED", "status 418"),
    (400, b"[" * 100_000, WrongState, "TARGET_REFUSED", "status 400"),
])  # fmt: skip
def test_each_refusal_is_one_clear_sentence_with_what_helps(
    status: int, content: bytes, kind: type[BrokerError], reason: str, helps: str
) -> None:
    error = told(status, content)
    assert (type(error), error.reason) == (kind, reason)
    assert helps in error.message
    assert "text of the service" not in error.message


def test_a_key_that_may_not_be_used_is_told_apart_from_a_missing_right() -> None:
    assert told(403, body("Forbidden", "KeyDisabled"), "sign").reason == "TARGET_KEY_DISABLED"
    assert "--ops" in told(403, body("Forbidden", "KeyOperationForbidden"), "decrypt").message


def test_when_to_try_again_is_told_where_the_vault_said_it() -> None:
    assert told(429, Retry_After="37").metadata == {"retry_after_seconds": "37"}
    assert told(503, Retry_After="3").metadata == {"retry_after_seconds": "3"}
    assert told(429, x_ms_retry_after_ms="1500").metadata == {"retry_after_seconds": "2"}
    for nonsense in ("soon", "-1", "9" * 40, "1e9", ""):
        assert told(429, Retry_After=nonsense).metadata == {}


def test_a_managed_hsm_is_told_its_own_role() -> None:
    hsm = Place(url="https://x-hsm.managedhsm.azure.net", host="x-hsm.managedhsm.azure.net:443", tier="managed-hsm",
                resource="https://managedhsm.azure.net", logins=())  # fmt: skip
    assert 'az keyvault role assignment create --hsm-name x-hsm --role "Managed HSM Crypto User"' in (
        refusals.lacking(hsm, ["import"]).message
    )
