"""Every switch of the fake: that it disturbs what it should, once, and what the client then sees."""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.core.exceptions import HttpResponseError, ServiceResponseError
from azure.keyvault.keys import JsonWebKey
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.servers.azure_key_vault import (
    Effect,
    FakeVault,
    Refused,
    bad_parameter,
    conflict,
    forbidden,
    insufficient_claims,
    key_not_found,
    throttled,
    unauthorized,
    unavailable,
)  # fmt: skip
from tests.servers.fake_azure import (
    API,
    Raw,
    StaticToken,
    b64,
    byok,
    ec_body,
    key_client,
    pkcs8,
    public_kek,
    raw_to,
    transfer,
    wrapped,
)  # fmt: skip

KEY = ec.generate_private_key(ec.SECP256R1())
DER = pkcs8(KEY)
PUBLIC = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
IMPORTS = r"^PUT /keys/[^/]+$"


@pytest.fixture
def raw(premium: FakeVault) -> Iterator[Raw]:
    premium.add_kek()
    with raw_to(premium) as connection:
        yield connection


def sdk_import(vault: FakeVault, **options: Any) -> Any:
    with key_client(vault, **options) as client:
        web_key = JsonWebKey(kty="EC-HSM", crv="P-256", t=transfer(vault, DER))
        return client.import_key("k", web_key, hardware_protected=True)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("refused", "expected", "headers"),
    [
        (unauthorized(), (401, "Unauthorized", ""), {"www-authenticate": r'Bearer authorization=".*", resource=".*"'}),
        (insufficient_claims(), (401, "Unauthorized", ""), {"www-authenticate": r'.*, error="insufficient_claims".*'}),
        (forbidden(), (403, "Forbidden", "AccessDenied"), {}),
        (forbidden("ForbiddenByFirewall"), (403, "Forbidden", "ForbiddenByFirewall"), {}),
        (key_not_found("k"), (404, "KeyNotFound", ""), {}),
        (conflict(), (409, "ConflictError", ""), {}),
        (conflict("ObjectIsBeingDeleted"), (409, "Conflict", "ObjectIsBeingDeleted"), {}),
        (throttled(7), (429, "Throttled", ""), {"retry-after": "7"}),
        (unavailable(), (503, "ServiceUnavailable", ""), {}),
        (bad_parameter("x"), (400, "BadParameter", ""), {}),
    ],
)
def test_a_refusal_disturbs_as_many_requests_as_it_was_told(
    premium: FakeVault, raw: Raw, refused: Refused, expected: tuple[int, str, str], headers: dict[str, str]
) -> None:
    premium.faults.add(refused, on=IMPORTS, times=2)
    assert raw.ask("GET", "/keys/kek")[0] == 200
    for _ in range(2):
        status, body, got = raw.send("PUT", f"/keys/k?api-version={API}", b"{}")
        error = body["error"]
        assert (status, error["code"], error.get("innererror", {}).get("code", "")) == expected
        assert error["message"]
        for name, pattern in headers.items():
            assert re.fullmatch(pattern, got[name]), got
    assert ("retry-after" in got) == (status == 429)
    assert premium.versions("k") == []
    assert raw.ask("PUT", "/keys/k", ec_body(premium, DER))[0] == 200
    assert premium.faults.fired == [("PUT /keys/k", refused)] * 2


def test_a_throttled_answer_can_leave_the_time_out(premium: FakeVault, raw: Raw) -> None:
    premium.faults.add(throttled(None))
    status, _, headers = raw.send("GET", f"/keys?api-version={API}")
    assert (status, "retry-after" in headers) == (429, False)


def test_BY_15_a_lost_answer_leaves_the_key_there(premium: FakeVault, raw: Raw) -> None:
    premium.faults.add(Effect.LOSE_ANSWER, on=IMPORTS)
    with pytest.raises(ServiceResponseError):
        sdk_import(premium)
    (held,) = premium.versions("k")
    assert held.public_key == PUBLIC
    assert premium.requests[-1].status == 0
    premium.faults.add(Effect.LOSE_ANSWER, on="^POST .*/create$")
    with pytest.raises(http.client.RemoteDisconnected):
        raw.ask("POST", "/keys/new/create", {"kty": "RSA-HSM", "key_ops": ["import"]})
    assert len(premium.versions("new")) == 1


def test_BY_15_the_client_s_own_retry_after_a_lost_answer_makes_a_second_version(premium: FakeVault) -> None:
    premium.add_kek()
    premium.faults.add(Effect.LOSE_ANSWER, on=IMPORTS)
    made = sdk_import(premium, retry_total=1, retry_read=1, retry_backoff_factor=0)
    first, second = premium.versions("k")
    assert made.id.endswith(second.version)
    assert first.public_key == second.public_key == PUBLIC


def test_the_client_s_own_retry_after_throttling_makes_one_version(premium: FakeVault) -> None:
    premium.add_kek()
    premium.faults.add(throttled(0), on=IMPORTS)
    assert sdk_import(premium, retry_total=1, retry_status=1).name == "k"
    assert [each.status for each in premium.requests][-2:] == [429, 200]
    assert len(premium.versions("k")) == 1


def test_a_cut_connection_leaves_nothing(premium: FakeVault, raw: Raw) -> None:
    premium.faults.add(Effect.CUT, on=IMPORTS)
    with pytest.raises(http.client.RemoteDisconnected):
        raw.ask("PUT", "/keys/k", ec_body(premium, DER))
    assert premium.versions("k") == []
    assert raw.ask("PUT", "/keys/k", ec_body(premium, DER))[0] == 200


def test_a_hanging_request_hangs_until_the_client_or_the_vault_gives_up(tmp_path: Path) -> None:
    ended: list[BaseException] = []

    def hang(raw: Raw) -> None:
        try:
            raw.ask("GET", "/keys")
        except OSError as error:
            ended.append(error)

    with FakeVault(tmp_path) as vault, raw_to(vault) as raw:
        with key_client(vault) as client:
            assert list(client.list_properties_of_keys()) == [], "the challenge is over"
            vault.faults.add(Effect.HANG, times=2)
            with pytest.raises(ServiceResponseError, match="timed out"):
                client.get_key("k", read_timeout=0.3)
        waiting = threading.Thread(target=hang, args=[raw])
        waiting.start()
        assert vault.faults.await_fired(2)
        with raw_to(vault) as other:
            assert other.ask("GET", "/keys")[0] == 200, "it holds nobody else up"
        assert ended == []
    waiting.join(60)
    assert len(ended) == 1
    assert not [each for each in threading.enumerate() if each.name == f"vault {vault.port}" or each is waiting]


def test_another_key_than_was_sent_can_be_kept(premium: FakeVault, managed_hsm: FakeVault, raw: Raw) -> None:
    premium.faults.add(Effect.OTHER_KEY)
    assert raw.ask("GET", "/keys")[0] == 200, "only imports use it up"
    status, answer = raw.ask("PUT", "/keys/k", ec_body(premium, DER))
    assert (status, answer["key"]["crv"]) == (200, "P-256")
    (held,) = premium.versions("k")
    assert held.public_key != PUBLIC
    assert raw.ask("GET", "/keys/k")[1] == answer
    managed_hsm.add_kek()
    managed_hsm.faults.add(Effect.OTHER_KEY)
    key = os.urandom(32)
    with raw_to(managed_hsm) as other:
        file = b64(transfer(managed_hsm, key))
        assert other.ask("PUT", "/keys/k", {"key": {"kty": "oct-HSM", "key_hsm": file}})[0] == 200
    assert managed_hsm.versions("k")[0].material != key


def test_BY_01_a_swapped_KEK_has_the_same_id_and_opens_no_old_file(premium: FakeVault, raw: Raw) -> None:
    before = raw.ask("GET", "/keys/kek")[1]["key"]
    file = byok(before["kid"], wrapped(public_kek(premium), DER))
    premium.swap_kek()
    after = raw.ask("GET", "/keys/kek")[1]["key"]
    assert (after["kid"], after["kty"], after["key_ops"]) == (before["kid"], before["kty"], before["key_ops"])
    assert (after["n"] == before["n"], len(after["n"])) == (False, len(before["n"]))
    body = {"key": {"kty": "EC-HSM", "crv": "P-256", "key_hsm": b64(file)}}
    assert raw.refusal("PUT", "/keys/k", body) == (400, "BadParameter", "")
    assert raw.ask("PUT", "/keys/k", ec_body(premium, DER))[0] == 200


def test_BY_02_a_vault_can_be_set_up_with_KEKs_that_must_be_refused(premium: FakeVault, raw: Raw) -> None:
    premium.add_kek("weak", bits=1024)
    premium.add_kek("soft", kty="RSA")
    premium.add_kek("able", key_ops=("import", "unwrapKey"))
    shown = {name: raw.ask("GET", f"/keys/{name}")[1]["key"] for name in ("weak", "soft", "able")}
    assert len(shown["weak"]["n"]) == 171
    assert (shown["soft"]["kty"], shown["able"]["key_ops"]) == ("RSA", ["import", "unwrapKey"])


def test_BY_08_a_version_can_be_made_to_look_exportable(premium: FakeVault, raw: Raw) -> None:
    assert raw.ask("PUT", "/keys/k", ec_body(premium, DER))[0] == 200
    premium.versions("k")[0].attributes.exportable = True
    assert raw.ask("GET", "/keys/k")[1]["attributes"]["exportable"] is True


RIGHTS = {
    "list": ("GET", "/keys/k/versions"), "get": ("GET", "/keys/k"), "import": ("PUT", "/keys/k"),
    "create": ("POST", "/keys/k/create"), "update": ("PATCH", "/keys/k"), "delete": ("DELETE", "/keys/k"),
    "recover": ("POST", "/deletedkeys/k/recover"), "purge": ("DELETE", "/deletedkeys/k"),
    "sign": ("POST", f"/keys/k/{'0' * 32}/sign"), "unwrapKey": ("POST", f"/keys/k/{'0' * 32}/unwrapkey"),
}  # fmt: skip


@pytest.mark.sampled(4)
@pytest.mark.parametrize("right", RIGHTS)
def test_a_right_that_is_taken_away_is_refused_before_anything_is_looked_up(
    premium: FakeVault, raw: Raw, right: str
) -> None:
    method, path = RIGHTS[right]
    body: dict[str, Any] | None = {} if method in {"PUT", "POST", "PATCH"} and "deleted" not in path else None
    premium.denied.add(right)
    assert raw.refusal(method, path, body) == (403, "Forbidden", "ForbiddenByRbac")
    premium.denied.clear()
    assert raw.ask(method, path, body)[0] != 403


def test_a_revoked_token_is_asked_for_anew(premium: FakeVault) -> None:
    premium.add_kek()
    credential = StaticToken(premium.token)
    with key_client(premium, credential=credential) as client:
        client.get_key("kek")
        for fault in (insufficient_claims(), unauthorized()):
            premium.faults.add(fault)
            assert client.get_key("kek").name == "kek"
        premium.faults.add(unauthorized(), times=3)
        with pytest.raises(HttpResponseError) as refused:
            client.get_key("kek")
    assert refused.value.status_code == 401
    assert credential.asked >= 3


def test_faults_can_be_taken_back(premium: FakeVault, raw: Raw) -> None:
    premium.faults.add(unavailable(), times=100)
    assert raw.ask("GET", "/keys")[0] == 503
    premium.faults.clear()
    assert raw.ask("GET", "/keys")[0] == 200


def test_many_at_once_make_a_version_each(premium: FakeVault) -> None:
    premium.add_kek()
    body = ec_body(premium, DER)
    statuses: list[int] = []

    def put() -> None:
        with raw_to(premium) as raw:
            statuses.append(raw.ask("PUT", "/keys/k", body)[0])

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert statuses == [200] * 8
    assert len({each.version for each in premium.versions("k")}) == 8


def test_it_can_be_started_by_hand_and_says_how_to_register_it() -> None:
    command = [sys.executable, "-m", "tests.servers.azure_key_vault", "--kind", "managed-hsm"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(15)]
        text = "".join(told)
        said = dict(re.findall(r'(\w+) = "([^"]+)"', text))
        assert set(said) == {"host", "kind", "ca_file", "token_file"}
        assert (said["kind"], f"https://{said['host']}" in text) == ("managed-hsm", True)
        assert Path(said["token_file"]).stat().st_mode & 0o777 == 0o600
        assert Path(said["token_file"]).read_text() not in text
        assert "--create-kek" in text
        process.terminate()
        assert process.wait(200) == 0
    assert not Path(said["ca_file"]).exists()
