"""The fake's REST API, byte by byte: what is answered, in which form, and what is refused with which code."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import socket
import ssl
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.servers.azure_key_vault import FakeVault
from tests.servers.azure_key_vault.vault import MOST_VERSIONS
from tests.servers.fake_azure import API, Raw, b64, byok, ec_body, pkcs8, public_kek, raw_to, wrapped

NOW = 1_800_000_000
BAD = (400, "BadParameter", "")
ABSENT = (404, "KeyNotFound", "")
DIGEST = b64(hashlib.sha256(b"challenge").digest())
KEK = {"kty": "RSA-HSM", "key_size": 2048, "key_ops": ["import"]}


@cache
def ec_pkcs8() -> bytes:
    return pkcs8(ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def clock() -> list[float]:
    return [NOW]


@pytest.fixture
def vault(tmp_path: Path, clock: list[float]) -> Iterator[FakeVault]:
    with FakeVault(tmp_path, now=lambda: clock[0]) as started:
        yield started


@pytest.fixture
def raw(vault: FakeVault) -> Iterator[Raw]:
    with raw_to(vault) as connection:
        yield connection


def imported(raw: Raw, name: str = "k", **more: Any) -> Any:
    """The bundle of a new EC key."""
    if not raw.vault.versions("kek"):
        raw.vault.add_kek()
    status, answer = raw.ask("PUT", f"/keys/{name}", ec_body(raw.vault, ec_pkcs8(), **more))
    assert status == 200, answer
    return answer


# Who is calling


def test_a_request_without_a_token_is_challenged_with_host_and_port(vault: FakeVault, raw: Raw) -> None:
    for method, path in (("PUT", "/keys/k"), ("GET", "/keys"), ("GET", "/nowhere"), ("POST", "/keys/k/create")):
        status, body, headers = raw.send(method, path, b"", {"Authorization": "", "Content-Type": ""})
        assert (status, body["error"]["code"]) == (401, "Unauthorized")
        challenge = re.fullmatch(
            r'Bearer authorization="https://([^/"]+)/[0-9a-f-]{36}", resource="https://([^/"]+)"',
            headers["www-authenticate"],
        )
        assert challenge, headers
        assert vault.host.endswith("." + challenge[2]), "the SDK would refuse it"
        assert vault.token not in json.dumps([body, dict(headers)])
    assert (vault.login.challenged, vault.login.accepted, vault.login.refused) == (4, 0, 0)


def test_BY_04_only_the_right_token_is_let_in(vault: FakeVault, raw: Raw) -> None:
    for wrong in ("Bearer x", f"bearer {vault.token}", f"Bearer {vault.token}x", vault.token, "Basic eDp5"):
        status, _, headers = raw.send("GET", f"/keys?api-version={API}", None, {"Authorization": wrong})
        assert (status, "www-authenticate" in headers) == (401, True)
    assert (vault.login.challenged, vault.login.accepted, vault.login.refused) == (0, 0, 5)
    assert raw.ask("GET", "/keys") == (200, {"value": [], "nextLink": None})
    assert vault.login.accepted == 1


def test_BY_04_the_challenge_can_be_made_to_lie(vault: FakeVault, raw: Raw) -> None:
    vault.authority, vault.resource = "https://login.evil.test/t", "https://vault.evil.test"
    _, _, headers = raw.send("GET", "/keys", None, {"Authorization": ""})
    assert headers["www-authenticate"] == (
        'Bearer authorization="https://login.evil.test/t", resource="https://vault.evil.test"'
    )


def test_BY_12_nobody_who_does_not_trust_its_CA_gets_in(vault: FakeVault) -> None:
    distrusting = http.client.HTTPSConnection(vault.host, context=ssl.create_default_context(), timeout=200)
    with pytest.raises(ssl.SSLCertVerificationError):
        distrusting.request("GET", "/keys")
    distrusting.close()
    host, port = vault.host.split(":")
    old = ssl.create_default_context(cafile=str(vault.ca_file))
    with socket.create_connection((host, int(port))) as plain, pytest.raises(ssl.SSLCertVerificationError):
        old.wrap_socket(plain, server_hostname="myvault.vault.azure.net")
    assert vault.requests == []
    assert vault.token_file.stat().st_mode & 0o777 == 0o600
    assert vault.token_file.read_text() == vault.token


# The frame


@pytest.mark.parametrize("version", ["2016-10-01", "7.0", "7.4", "7.6", "2025-07-01"])
def test_a_documented_api_version_is_served(raw: Raw, version: str) -> None:
    assert raw.ask("GET", "/keys", version=version)[0] == 200


def test_another_api_version_or_an_unknown_parameter_is_refused(raw: Raw, managed_hsm: FakeVault) -> None:
    for query in ("", "?api-version=", "?api-version=7.7", "?api-version=2015-06-01", f"?api-version={API}&x=1"):
        assert raw.send("GET", f"/keys{query}")[0] == 400
    with raw_to(managed_hsm) as other:
        assert other.ask("GET", "/keys", version="7.1")[0] == 400, "managed HSMs came with 7.2"
        assert other.ask("GET", "/keys", version="7.2")[0] == 200


def test_paths_methods_and_media_types_that_do_not_exist_are_refused(raw: Raw) -> None:
    raw.vault.add_kek()
    assert raw.refusal("GET", "/secrets") == (404, "NotFound", "")
    assert raw.refusal("GET", "/keys/k/notaversion") == (404, "NotFound", "")
    assert raw.refusal("POST", "/keys/k") == (405, "MethodNotAllowed", "")
    assert raw.refusal("PUT", "/keys") == (405, "MethodNotAllowed", "")
    assert raw.send("PUT", f"/keys/k?api-version={API}", b"{}", {"Content-Type": "text/plain"})[0] == 415
    assert raw.send("GET", f"/keys?api-version={API}", b"{}")[0] == 400
    for body in (b"", b"[]", b"{", b'{"key": 1, "key": 2}', b"\xff", b'{"key": NaN}'):
        assert raw.send("PUT", f"/keys/k?api-version={API}", body)[0] == 400
    status, answer, _ = raw.send("PUT", f"/keys/k?api-version={API}", b" " * ((1 << 20) + 1))
    assert (status, answer["error"]["code"]) == (413, "RequestEntityTooLarge")


@pytest.mark.parametrize("name", ["", "a_b", "a.b", "a%2Fb", "a" * 128, "%C3%A4", "a%00", "..%2f", "a%0a"])
def test_a_name_that_no_key_can_have_is_refused(raw: Raw, name: str) -> None:
    raw.vault.add_kek()
    assert raw.ask("PUT", f"/keys/{name}", ec_body(raw.vault, ec_pkcs8()))[0] in {400, 404, 405}
    assert [each["kid"] for each in raw.ask("GET", "/keys")[1]["value"]] == [f"{raw.vault.url}/keys/kek"]


def test_every_answer_has_the_headers_of_the_real_one(vault: FakeVault, raw: Raw) -> None:
    sent = {"x-ms-client-request-id": "8a4d", "Authorization": f"Bearer {vault.token}"}
    _, _, headers = raw.send("GET", f"/keys?api-version={API}", None, sent)
    assert headers["x-ms-client-request-id"] == "8a4d"
    assert re.fullmatch(r"[0-9a-f-]{36}", headers["x-ms-request-id"])
    for name in ("x-ms-keyvault-region", "x-ms-keyvault-service-version", "x-ms-keyvault-network-info"):
        assert headers[name]
    assert headers["content-type"] == "application/json; charset=utf-8"
    assert headers["cache-control"] == "no-cache"
    assert "max-age" in headers["strict-transport-security"]


# Keys


def test_a_KEK_can_do_nothing_but_import(vault: FakeVault, raw: Raw) -> None:
    status, made = raw.ask("POST", "/keys/Kek-1/create", {**KEK, "tags": {"a": "b"}})
    assert status == 200
    assert set(made) == {"key", "attributes", "tags"}
    assert set(made["key"]) == {"kid", "kty", "key_ops", "n", "e"}
    assert (made["key"]["kty"], made["key"]["key_ops"], made["key"]["e"]) == ("RSA-HSM", ["import"], "AQAB")
    assert re.fullmatch(rf"{re.escape(vault.url)}/keys/Kek-1/[0-9a-f]{{32}}", made["key"]["kid"])
    version = made["key"]["kid"].rsplit("/", 1)[1]
    for operation in ("sign", "encrypt", "wrapkey", "unwrapkey", "decrypt"):
        body = {"alg": "RS256" if operation == "sign" else "RSA-OAEP", "value": DIGEST}
        path = f"/keys/Kek-1/{version}/{operation}"
        assert raw.refusal("POST", path, body) == (403, "Forbidden", "KeyOperationForbidden")
    assert raw.refusal("PATCH", f"/keys/Kek-1/{version}", {"key_ops": ["sign"]}) == BAD
    assert raw.ask("PATCH", f"/keys/Kek-1/{version}", {"key_ops": ["import"]})[0] == 200


def test_BY_02_import_stands_alone_in_a_KEK(raw: Raw) -> None:
    changes: list[dict[str, Any]] = [
        {"key_ops": ["import", "sign"]},
        {"key_ops": ["wrapKey", "import"]},
        {"key_ops": ["import", "import"]},
        {"key_ops": []},
        {"key_ops": None},
        {"kty": "RSA"},
        {"kty": "EC-HSM"},
        {"key_size": 1024},
        {"key_size": 2047},
        {"key_size": "2048"},
        {"public_exponent": 3},
        {"attributes": {"exportable": True}},
        {"release_policy": {}},
        {"crv": "P-256"},
        {"k": 1},
    ]
    for change in changes:
        assert raw.refusal("POST", "/keys/kek/create", {**KEK, **change}) == BAD, change
    assert raw.ask("GET", "/keys")[1]["value"] == []


def test_BY_06_a_second_import_makes_a_second_version(raw: Raw, clock: list[float]) -> None:
    first = imported(raw, "Key")
    clock[0] += 5
    second = imported(raw, "kEY")
    assert first["key"]["x"] == second["key"]["x"]
    assert first["key"]["kid"] != second["key"]["kid"]
    assert second["key"]["kid"].startswith(f"{raw.vault.url}/keys/Key/"), "the name is the one it was made with"
    assert raw.ask("GET", "/keys/KEY")[1] == second
    assert raw.ask("GET", "/keys/key/")[1] == second
    old = first["key"]["kid"].rsplit("/", 1)[1]
    assert raw.ask("GET", f"/keys/key/{old}")[1] == first
    listed = raw.ask("GET", "/keys/key/versions")[1]["value"]
    assert {each["kid"] for each in listed} == {first["key"]["kid"], second["key"]["kid"]}
    assert [each["kid"] for each in listed] == sorted(each["kid"] for each in listed), "no order by age"
    assert {each["attributes"]["created"] for each in listed} == {NOW, NOW + 5}
    assert set(listed[0]) == {"kid", "attributes"}
    assert [each.version for each in raw.vault.versions("key")] == [
        bundle["key"]["kid"].rsplit("/", 1)[1] for bundle in (first, second)
    ]
    assert raw.refusal("GET", f"/keys/key/{'0' * 32}") == ABSENT
    assert raw.refusal("GET", "/keys/other") == ABSENT
    assert raw.ask("GET", "/keys/other/versions") == (200, {"value": [], "nextLink": None})


def test_lists_come_in_pages_whose_link_leads_on(vault: FakeVault, raw: Raw) -> None:
    kid = vault.add_kek()
    ciphertext = wrapped(public_kek(vault), ec_pkcs8())
    for _ in range(27):
        body = {"key": {"kty": "EC-HSM", "crv": "P-256", "key_hsm": b64(byok(kid, ciphertext))}}
        assert raw.ask("PUT", "/keys/k", body)[0] == 200
    status, page = raw.ask("GET", "/keys/k/versions")
    assert (status, len(page["value"])) == (200, 25)
    assert page["nextLink"].startswith(f"{vault.url}/keys/k/versions?api-version={API}&$skiptoken=")
    _, rest, _ = raw.send("GET", page["nextLink"].removeprefix(vault.url))
    assert (len(rest["value"]), rest["nextLink"]) == (2, None)
    assert len({each["kid"] for each in page["value"] + rest["value"]}) == 27
    assert len(raw.ask("GET", "/keys/k/versions?maxresults=10")[1]["value"]) == 10
    for wrong in ("maxresults=0", "maxresults=26", "maxresults=x", "$skiptoken=x=", "$skiptoken=AAAA"):
        assert raw.refusal("GET", f"/keys/k/versions?{wrong}") == BAD


def test_a_key_in_a_managed_HSM_has_at_most_100_versions(managed_hsm: FakeVault) -> None:
    kid = managed_hsm.add_kek()
    file = b64(byok(kid, wrapped(public_kek(managed_hsm), os.urandom(32))))
    body = {"key": {"kty": "oct-HSM", "key_hsm": file}}
    with raw_to(managed_hsm) as raw:
        for _ in range(MOST_VERSIONS):
            assert raw.ask("PUT", "/keys/k", body)[0] == 200
        assert raw.refusal("PUT", "/keys/K", body) == BAD
        assert raw.ask("PUT", "/keys/other", body)[0] == 200
    assert len(managed_hsm.versions("k")) == MOST_VERSIONS == 100
