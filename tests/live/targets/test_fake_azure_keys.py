"""Keys in the fake, by raw HTTP: their attributes, their use, their deletion, each as documented."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.servers.azure_key_vault import FakeVault
from tests.servers.fake_azure import API, Raw, b64, ec_body, pkcs8, raw_to, transfer

NOW = 1_800_000_000
BAD = (400, "BadParameter", "")
ABSENT = (404, "KeyNotFound", "")
DIGEST = b64(hashlib.sha256(b"challenge").digest())
KEK = {"kty": "RSA-HSM", "key_size": 2048, "key_ops": ["import"]}


@cache
def ec_pkcs8() -> bytes:
    return pkcs8(ec.generate_private_key(ec.SECP256R1()))


@cache
def rsa_pkcs8() -> bytes:
    return pkcs8(rsa.generate_private_key(65537, 2048))


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


# Attributes


def test_attributes_and_tags_are_set_shown_and_changed(raw: Raw, clock: list[float]) -> None:
    asked = {"enabled": False, "nbf": NOW + 100, "exp": NOW + 200, "exportable": False}
    made = imported(raw, attributes=asked, tags={"owner": "x"}, Hsm=True)
    assert made["attributes"] == {
        **asked, "created": NOW, "updated": NOW, "recoveryLevel": "Recoverable+Purgeable", "recoverableDays": 90,
        "hsmPlatform": "2",
    }  # fmt: skip
    version = made["key"]["kid"].rsplit("/", 1)[1]
    clock[0] += 7
    change = {"attributes": {"enabled": True}, "key_ops": ["verify"]}
    status, changed = raw.ask("PATCH", f"/keys/k/{version}", change)
    assert status == 200
    assert changed["tags"] == {"owner": "x"}
    assert changed["key"]["key_ops"] == ["verify"]
    assert changed["attributes"] == {**made["attributes"], "enabled": True, "updated": NOW + 7}
    assert raw.ask("PATCH", "/keys/K", {"tags": {}})[1].get("tags") is None
    assert raw.ask("GET", "/keys/k")[1]["key"]["key_ops"] == ["verify"]


def test_attributes_tags_and_operations_of_another_form_are_refused(raw: Raw) -> None:
    before = imported(raw)
    version = before["key"]["kid"].rsplit("/", 1)[1]
    wrong: list[dict[str, Any]] = [
        {"attributes": {"enabled": 1}},
        {"attributes": {"nbf": 1.5}},
        {"attributes": {"exp": "2030-01-01"}},
        {"attributes": {"exp": -1}},
        {"attributes": {"nbf": NOW + 1, "exp": NOW}},
        {"attributes": {"exportable": True}},
        {"attributes": {"recoveryLevel": "Purgeable"}},
        {"attributes": [1]},
        {"tags": {"a": 1}},
        {"tags": {"": "x"}},
        {"tags": {"a": "x" * 513}},
        {"tags": {str(each): "" for each in range(16)}},
        {"tags": ["a"]},
        {"release_policy": {}},
    ]
    for change in (*wrong, {"key_ops": ["encrypt"]}, {"key_ops": ["import"]}, {"key_ops": ["sign", "import"]}):
        assert raw.refusal("PATCH", f"/keys/k/{version}", change) == BAD, change
    for change in wrong:
        assert raw.refusal("PUT", "/keys/k", ec_body(raw.vault, ec_pkcs8(), **change)) == BAD, change
    assert raw.ask("GET", "/keys/k")[1] == before
    assert raw.refusal("PATCH", f"/keys/other/{version}", {"tags": {}}) == ABSENT


# Use


def use(raw: Raw, bundle: Any, operation: str, **body: Any) -> tuple[int, Any]:
    return raw.ask("POST", bundle["key"]["kid"].removeprefix(raw.vault.url) + f"/{operation}", body)


def test_a_disabled_key_does_nothing_but_can_be_read(raw: Raw) -> None:
    key = imported(raw)
    signed = use(raw, key, "sign", alg="ES256", value=DIGEST)[1]
    assert signed["kid"] == key["key"]["kid"]
    path = key["key"]["kid"].removeprefix(raw.vault.url)
    assert raw.ask("PATCH", path, {"attributes": {"enabled": False}})[0] == 200
    for operation, body in (
        ("sign", {"alg": "ES256", "value": DIGEST}),
        ("verify", {"alg": "ES256", "digest": DIGEST, "value": signed["value"]}),
    ):
        assert raw.refusal("POST", f"{path}/{operation}", body) == (403, "Forbidden", "KeyDisabled")
    assert raw.ask("GET", path)[1]["attributes"]["enabled"] is False


def test_outside_its_time_a_key_protects_nothing_but_still_verifies(raw: Raw, clock: list[float]) -> None:
    key = imported(raw, attributes={"nbf": NOW, "exp": NOW + 100})
    path = key["key"]["kid"].removeprefix(raw.vault.url)
    _, signed = use(raw, key, "sign", alg="ES256", value=DIGEST)
    for moment, code in ((NOW - 1, "KeyNotYetValid"), (NOW + 100, "KeyExpired")):
        clock[0] = moment
        answer = raw.refusal("POST", f"{path}/sign", {"alg": "ES256", "value": DIGEST})
        assert answer == (403, "Forbidden", code)
        verified = use(raw, key, "verify", alg="ES256", digest=DIGEST, value=signed["value"])
        assert verified == (200, {"value": True})


def test_algorithms_and_lengths_that_do_not_fit_are_refused(raw: Raw) -> None:
    key = imported(raw)
    path = key["key"]["kid"].removeprefix(raw.vault.url)
    for body in (
        {"alg": "ES384", "value": DIGEST},
        {"alg": "ES256K", "value": DIGEST},
        {"alg": "RS256", "value": DIGEST},
        {"alg": "none", "value": DIGEST},
        {"alg": ["ES256"], "value": DIGEST},
        {"alg": "ES256", "value": b64(b"x" * 31)},
        {"alg": "ES256", "value": b64(b"x" * 48)},
        {"alg": "ES256", "value": DIGEST + "="},
        {"alg": "ES256", "value": base64.b64encode(b"\xff" * 32).decode()},
        {"alg": "ES256"},
        {"value": DIGEST},
        {"alg": "ES256", "value": DIGEST, "digest": DIGEST},
    ):
        assert raw.refusal("POST", f"{path}/sign", body) == BAD, body
    signature = use(raw, key, "sign", alg="ES256", value=DIGEST)[1]["value"]
    for wrong in (signature[:-2], b64(b"\0" * 64), b64(b"x" * 65)):
        assert use(raw, key, "verify", alg="ES256", digest=DIGEST, value=wrong) == (200, {"value": False})
    assert raw.refusal("POST", f"{path}/encrypt", {"alg": "RSA-OAEP", "value": DIGEST})[0] == 403


def test_GCM_takes_no_iv_of_the_callers_and_opens_only_what_belongs_together(managed_hsm: FakeVault) -> None:
    managed_hsm.add_kek()
    with raw_to(managed_hsm) as raw:
        file = b64(transfer(managed_hsm, os.urandom(32)))
        _, key = raw.ask("PUT", "/keys/k", {"key": {"kty": "oct-HSM", "key_hsm": file}})
        status, sealed = use(raw, key, "encrypt", alg="A256GCM", value=DIGEST, aad=b64(b"aad"))
        assert (status, set(sealed)) == (200, {"kid", "value", "iv", "tag", "aad"})
        parts = {name: sealed[name] for name in ("value", "iv", "tag", "aad")}
        assert use(raw, key, "decrypt", alg="A256GCM", **parts)[1]["value"] == DIGEST
        for altered in (
            {**parts, "tag": b64(b"\0" * 16)},
            {**parts, "tag": parts["tag"][:-2]},
            {**parts, "aad": b64(b"other")},
            {name: parts[name] for name in ("value", "iv")},
            {name: parts[name] for name in ("value", "tag")},
        ):
            assert use(raw, key, "decrypt", alg="A256GCM", **altered)[0] == 400
        assert use(raw, key, "encrypt", alg="A256GCM", value=DIGEST, iv=b64(b"\0" * 12))[0] == 400
        assert use(raw, key, "encrypt", alg="A128GCM", value=DIGEST)[0] == 400
        assert use(raw, key, "encrypt", alg="A256KW", value=DIGEST)[0] == 400
        assert use(raw, key, "wrapkey", alg="A256KW", value=b64(b"x" * 15))[0] == 400
        assert use(raw, key, "wrapkey", alg="A256KW", value=DIGEST, iv=b64(b"x" * 8))[0] == 400
        assert use(raw, key, "sign", alg="HS256", value=DIGEST)[0] == 403


def test_an_RSA_key_opens_only_what_was_sealed_to_it(raw: Raw) -> None:
    raw.vault.add_kek()
    body = {"key": {"kty": "RSA-HSM", "key_hsm": b64(transfer(raw.vault, rsa_pkcs8()))}}
    _, key = raw.ask("PUT", "/keys/k", body)
    sealed = use(raw, key, "encrypt", alg="RSA-OAEP-256", value=DIGEST)[1]["value"]
    assert use(raw, key, "decrypt", alg="RSA-OAEP-256", value=sealed)[1]["value"] == DIGEST
    assert use(raw, key, "decrypt", alg="RSA-OAEP", value=sealed)[0] == 400
    assert use(raw, key, "decrypt", alg="RSA-OAEP-256", value=b64(b"\0" * 256))[0] == 400
    assert use(raw, key, "encrypt", alg="RSA-OAEP-256", value=b64(b"x" * 191))[0] == 400
    assert use(raw, key, "encrypt", alg="RSA1_5", value=DIGEST)[0] == 400


# Deletion


def test_a_deleted_key_keeps_its_name_until_it_is_purged(vault: FakeVault, raw: Raw) -> None:
    made = imported(raw, "K")
    taken = (409, "Conflict", "ObjectIsDeletedButRecoverable")
    status, deleted = raw.ask("DELETE", "/keys/k")
    assert status == 200
    assert deleted == {
        **made, "recoveryId": f"{vault.url}/deletedkeys/K", "deletedDate": NOW,
        "scheduledPurgeDate": NOW + 90 * 86400,
    }  # fmt: skip
    assert raw.refusal("PUT", "/keys/k", ec_body(vault, ec_pkcs8())) == taken
    assert raw.refusal("POST", "/keys/K/create", KEK) == taken
    for method, path in (("GET", "/keys/k"), ("DELETE", "/keys/k"), ("PATCH", "/keys/k")):
        assert raw.refusal(method, path, {} if method == "PATCH" else None) == ABSENT
    assert raw.refusal("POST", made["key"]["kid"].removeprefix(vault.url) + "/sign", {}) == ABSENT
    assert (vault.versions("k"), raw.ask("GET", "/keys/k/versions")[1]["value"]) == ([], [])
    assert raw.ask("GET", "/deletedkeys/k")[1] == deleted
    (item,) = raw.ask("GET", "/deletedkeys")[1]["value"]
    assert (item["kid"], item["recoveryId"]) == (f"{vault.url}/keys/K", deleted["recoveryId"])
    assert raw.ask("POST", "/deletedkeys/k/recover") == (200, made)
    assert raw.ask("GET", "/keys/k") == (200, made)
    assert raw.ask("DELETE", "/keys/k")[0] == 200
    assert raw.send("DELETE", f"/deletedkeys/k?api-version={API}")[:2] == (204, None)
    assert raw.refusal("GET", "/deletedkeys/k") == ABSENT
    assert raw.refusal("POST", "/deletedkeys/k/recover") == ABSENT
    assert raw.ask("PUT", "/keys/k", ec_body(vault, ec_pkcs8()))[0] == 200


def test_purge_protection_keeps_a_deleted_key(tmp_path: Path) -> None:
    with FakeVault(tmp_path, purge_protection=True) as vault, raw_to(vault) as raw:
        made = imported(raw)
        assert made["attributes"]["recoveryLevel"] == "Recoverable"
        assert raw.ask("DELETE", "/keys/k")[0] == 200
        assert raw.refusal("DELETE", "/deletedkeys/k")[:2] == (403, "Forbidden")
        assert raw.ask("POST", "/deletedkeys/k/recover")[0] == 200
