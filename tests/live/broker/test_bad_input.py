"""Bad input against the running broker: one clear sentence, one audit record, no side effect, and it lives on."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from broker.targets.vault.policy import policy
from tests.live.broker.live_story import everything, fresh
from tests.servers.live import OPTIONS, Client, Live, live_in, vault_settings
from tests.servers.openbao import OpenBao, self_signed
from tests.servers.refusals import Refused

EC_P256, AES_256, RSA_2048 = 4, 10, 1
SIGN, ENCRYPT = 1, 2
CANARY = b"canary-plaintext-8315"

Unharmed = Callable[..., Refused]


@contextmanager
def nothing_happens(live: Live, admin: Client, bao: OpenBao) -> Iterator[None]:
    before = everything(admin, live, bao)
    yield
    assert everything(admin, live, bao) == before


@pytest.fixture(scope="module")
def admin(live: Live, openbao: OpenBao) -> Client:
    admin = live.client()
    openbao.write_token(live.folder / "credentials", "wrong-token", "canary-wrong-token-2291")
    return admin


@pytest.fixture
def unharmed(live: Live, admin: Client, openbao: OpenBao) -> Unharmed:
    """Make a call that must be refused so, with everything that this section promises of a refusal."""

    def unharmed(rpc: str, code: str, reason: str, **fields: Any) -> Refused:
        with nothing_happens(live, admin, openbao):
            count = len(live.records())
            error = admin.refusal(rpc, **fields)
            outcomes = live.since(count)
        assert (error.code, error.reason) == (code, reason), error
        [outcome] = outcomes
        assert (outcome["call"], outcome["outcome"], outcome["reason"]) == (error.call_id, code, reason)
        assert outcome["principal"] == "operator/admin"
        assert_clear(error.sentence)
        assert_silent(live, openbao)
        return error

    return unharmed


def assert_clear(sentence: str) -> None:
    assert 20 <= len(sentence) <= 1024
    assert not sentence[0].islower()  # it may begin with an address
    assert sentence.endswith(".")
    assert "\n" not in sentence
    for code in ("Traceback", "Error(", "0x", "None", "object at"):
        assert code not in sentence, sentence


def assert_silent(live: Live, bao: OpenBao) -> None:
    """No secret on any surface, and no traceback."""
    said = live.said
    assert "Traceback" not in said
    for secret in (live.pin, bao.broker_token, CANARY.decode(), "canary-wrong-token-2291"):
        assert secret not in said
        assert secret not in json.dumps(live.records())


BAD_NAMES = {
    "dots": "..", "path": "../../etc/passwd", "slash": "a/b", "empty": "", "upper": "Payments", "long": "a" * 10_240,
    "hyphen": "a--b", "newline": "a\nb", "look-alike": "pаyments", "right-to-left": "a\u202eb", "sql": "a' OR 1=1 --",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES.keys())
def test_AZ_01_a_name_outside_the_grammar_is_refused_and_not_quoted(name: str, unharmed: Unharmed) -> None:
    error = unharmed("CreateKey", "INVALID_ARGUMENT", "NAME_INVALID", name=name, type=EC_P256, usage=SIGN)
    assert not name or name not in error.sentence


def test_AZ_01_a_bad_name_is_refused_wherever_one_is_taken(unharmed: Unharmed) -> None:
    vault = {"address": "https://127.0.0.1:1", "mount": "transit", "ca_pem": "x", "token_file": "t"}
    bad: dict[str, dict[str, Any]] = {
        "GetKey": {"name": ".."},
        "Sign": {"name": "a/b", "input": {"message": CANARY}},
        "Decrypt": {"name": "..", "ciphertext": CANARY},
        "ImportKey": {"name": "a", "target": "../bao"},
        "CreateTarget": {"name": "../bao", "vault": vault},
        "AddOperator": {"name": "root/../admin", "csr_pem": "x"},
        "SetOperatorGroups": {"name": "admin", "groups": ["../admins"]},
        "ExplainPolicy": {"operator": "..", "action": "Sign", "broker": True},
    }
    for rpc, fields in bad.items():
        unharmed(rpc, "INVALID_ARGUMENT", "NAME_INVALID", **fields)


def test_a_nul_in_a_text_is_refused(unharmed: Unharmed) -> None:
    unharmed("CreateKey", "INVALID_ARGUMENT", "TEXT_INVALID", name="a\0b", type=EC_P256, usage=SIGN)
    unharmed(
        "CreateKey", "INVALID_ARGUMENT", "TEXT_INVALID", name="a", type=EC_P256, usage=SIGN, labels={"team": "a\0"}
    )


@pytest.mark.parametrize("number", [99, -1, 2**31 - 1])
def test_an_unknown_enum_number_is_refused(number: int, unharmed: Unharmed) -> None:
    unharmed("CreateKey", "INVALID_ARGUMENT", "ENUM_UNKNOWN", name="a", type=number, usage=SIGN)
    unharmed("CreateKey", "INVALID_ARGUMENT", "ENUM_UNKNOWN", name="a", type=EC_P256, usage=number)
    unharmed("Sign", "INVALID_ARGUMENT", "ENUM_UNKNOWN", name="a", algorithm=number, input={"message": b"m"})


def test_BY_09_a_key_that_is_not_exportable_is_not_imported(admin: Client, unharmed: Unharmed) -> None:
    name = fresh("stays")
    admin.ask("CreateKey", name=name, type=EC_P256, usage=SIGN)
    unharmed("ImportKey", "FAILED_PRECONDITION", "KEY_NOT_EXPORTABLE", name=name, target="bao")


def test_BY_10_a_name_taken_at_the_target_is_left_alone(live: Live, admin: Client, openbao: OpenBao) -> None:
    name, count = fresh("taken"), 0
    openbao.request("POST", f"{openbao.mount}/keys/{name}", {"type": "ecdsa-p256"})
    theirs = openbao.request("GET", f"{openbao.mount}/keys/{name}")["data"]
    admin.ask("CreateKey", name=name, type=EC_P256, usage=SIGN, exportable=True)
    count = len(live.records())
    error = admin.refusal("ImportKey", name=name, target="bao")
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "TARGET_NAME_TAKEN")
    assert [one["reason"] for one in live.since(count)] == ["TARGET_NAME_TAKEN"]
    assert_clear(error.sentence)
    assert openbao.request("GET", f"{openbao.mount}/keys/{name}")["data"] == theirs
    [row] = admin.ask("ListImports", name=name).imports
    assert row.failure == "TARGET_NAME_TAKEN"
    again = admin.ask("ImportKey", name=name, target="bao", remote_name=f"{name}-ours")
    assert getattr(again, "import").remote_version == "1"


def test_a_message_over_the_limit_is_refused(admin: Client, unharmed: Unharmed) -> None:
    name = fresh("limit")
    admin.ask("CreateKey", name=name, type=EC_P256, usage=SIGN)
    large = {"message": CANARY + b"m" * 65536}
    unharmed("Sign", "INVALID_ARGUMENT", "FIELD_TOO_LONG", name=name, input=large)
    unharmed("BatchSign", "INVALID_ARGUMENT", "FIELD_TOO_LONG", name=name, inputs=[{"message": b"m"}] * 101)
    unharmed("Sign", "RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE", name=name, input={"message": CANARY + b"m" * (1 << 20)})
    assert admin.ask("Sign", name=name, input={"message": b"m" * 65536}).signature


def test_a_message_far_over_the_limit_is_refused_by_the_transport(live: Live, admin: Client, openbao: OpenBao) -> None:
    with nothing_happens(live, admin, openbao):
        error = admin.refusal("Sign", name="a", input={"message": CANARY * (1 << 18)})
    assert error.code == "RESOURCE_EXHAUSTED"
    assert_silent(live, openbao)


@pytest.mark.parametrize("rpc", ["Sign", "CreateKey", "SetPolicy"])
def test_bytes_that_are_no_request_are_refused(rpc: str, live: Live, admin: Client, openbao: OpenBao) -> None:
    for wire in (b"\xff" * 40, b"\x0a\x7fshort", b"\xfa\x3e\x02hi", b"\x0a\x02\xff\xfe"):
        with nothing_happens(live, admin, openbao):
            count = len(live.records())
            with pytest.raises(Refused) as caught:
                admin.send(rpc, wire)
            [outcome] = live.since(count)
        assert caught.value.code == outcome["outcome"] == "INVALID_ARGUMENT"
        assert caught.value.reason == outcome["reason"] != ""
        assert_clear(caught.value.sentence)
    assert_silent(live, openbao)


def test_NT_18_plaintext_on_the_tls_ports_ends_there(live: Live, admin: Client, openbao: OpenBao) -> None:
    count = len(live.records())
    for address in (live.address, live.pipelines):
        host, _, port = address.rpartition(":")
        for hello in (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0" * 512):
            with socket.create_connection((host, int(port)), timeout=200) as plain:
                plain.sendall(hello)
                assert_ended(plain)
        with grpc.insecure_channel(address, options=OPTIONS) as channel:
            call = channel.unary_unary("/broker_api.v1.OperatorService/WhoAmI", bytes, bytes)
            with pytest.raises(grpc.RpcError) as caught:
                call(b"", timeout=200)
        code: Any = caught.value
        assert code.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    assert live.since(count) == []  # none of them reached the gate
    assert_silent(live, openbao)
    assert admin.ask("WhoAmI").principal == "operator/admin"


def assert_ended(plain: socket.socket) -> None:
    """The other side says at most a TLS alert, and hangs up."""
    try:
        said = plain.recv(4096)
        assert not said or said[0] == 0x15, said  # an alert (RFC 8446 5.1), never application data or HTTP
        assert plain.recv(4096) == b"" if said else True
    except ConnectionResetError:
        pass


# ---- targets ---------------------------------------------------------------------------------------------------------


def test_a_target_that_cannot_be_used_is_not_registered(
    live: Live, openbao: OpenBao, unharmed: Unharmed, tmp_path: Path
) -> None:
    other_ca = self_signed(tmp_path / "other")[0].read_text()
    for code, reason, other in (
        ("UNAVAILABLE", "TARGET_UNREACHABLE", {"address": f"https://{live.dead}"}),
        ("INVALID_ARGUMENT", "TARGET_HOST_NOT_ALLOWED", {"address": "https://169.254.169.254:80"}),
        ("FAILED_PRECONDITION", "TARGET_TLS_UNTRUSTED", {"ca_pem": other_ca}),
        ("FAILED_PRECONDITION", "TARGET_DENIED", {"mount": "nowhere"}),
        ("FAILED_PRECONDITION", "TARGET_DENIED", {"token_file": "wrong-token"}),
        ("FAILED_PRECONDITION", "TARGET_CREDENTIAL_UNUSABLE", {"token_file": "absent"}),
        ("INVALID_ARGUMENT", "TARGET_SETTINGS_INVALID", {"token_file": "../hsm-pin"}),
        ("INVALID_ARGUMENT", "TARGET_SETTINGS_INVALID", {"mount": "../sys"}),
        ("INVALID_ARGUMENT", "TARGET_SETTINGS_INVALID", {"ca_pem": "canary"}),
        ("INVALID_ARGUMENT", "TARGET_SETTINGS_INVALID", {"address": f"http://{openbao.host}"}),
    ):
        unharmed("CreateTarget", code, reason, name=fresh("no"), vault=vault_settings(openbao, **other))


def test_BY_12_a_mount_of_another_kind_is_told_apart(live: Live, openbao: OpenBao, unharmed: Unharmed) -> None:
    mount = fresh("kv")
    openbao.request("POST", f"sys/mounts/{mount}", {"type": "kv", "options": {"version": "1"}})
    token = openbao.token_for(f'path "{mount}/*" {{ capabilities = ["read", "list"] }}', mount)
    openbao.write_token(live.folder / "credentials", mount, token)
    vault = vault_settings(openbao, mount=mount, token_file=mount)
    unharmed("CreateTarget", "FAILED_PRECONDITION", "TARGET_MOUNT_MISSING", name=mount, vault=vault)


def test_BY_01_a_kek_that_changed_since_it_was_pinned_gets_nothing(
    live: Live, admin: Client, openbao: OpenBao, unharmed: Unharmed
) -> None:
    mount, name = fresh("moved"), fresh("kek")
    openbao.make_mount(mount)
    openbao.write_token(live.folder / "credentials", mount, openbao.token_for(policy(mount), fresh("moved")))
    vault = vault_settings(openbao, mount=mount, token_file=mount)
    pinned = admin.ask("CreateTarget", name=mount, vault=vault).target.kek_thumbprint
    admin.ask("CreateKey", name=name, type=EC_P256, usage=SIGN, exportable=True)
    openbao.request("DELETE", f"sys/mounts/{mount}")
    openbao.make_mount(mount)
    unharmed("ImportKey", "FAILED_PRECONDITION", "KEK_CHANGED", name=name, target=mount)
    findings = {one.name: one for one in admin.ask("CheckTarget", name=mount).findings}
    assert not findings["kek"].passed
    unharmed("RepinTarget", "FAILED_PRECONDITION", "KEK_UNEXPECTED", name=mount, expected_kek_thumbprint=pinned)
    admin.ask("DeleteTarget", name=mount)


def test_a_sealed_or_stopped_vault_is_told_and_later_used(tmp_path: Path, openbao_own: OpenBao) -> None:
    with live_in(tmp_path, openbao_own) as broker, broker.client() as admin:
        admin.ask("CreateKey", name="waits", type=EC_P256, usage=SIGN, exportable=True)
        openbao_own.seal()
        assert_away(broker, admin, "TARGET_SEALED")
        openbao_own.stop()
        assert_away(broker, admin, "TARGET_UNREACHABLE")
        openbao_own.start()
        assert getattr(admin.ask("ImportKey", name="waits", target="bao"), "import").remote_version == "1"
        assert_silent(broker, openbao_own)


def assert_away(live: Live, admin: Client, reason: str) -> None:
    count = len(live.records())
    error = admin.refusal("ImportKey", name="waits", target="bao")
    assert (error.code, error.reason) == ("UNAVAILABLE", reason)
    assert_clear(error.sentence)
    assert [one["reason"] for one in live.since(count)] == [reason]
    assert list(admin.ask("ListImports").imports) == []
