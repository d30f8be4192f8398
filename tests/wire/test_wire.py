"""The wire does not change unnoticed: every RPC, sound and refused in each way, is answered as it was recorded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from broker_api.v1 import trust_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message_factory import GetMessageClass

from tests.live.broker.live_story import fresh, story
from tests.servers.bao_issuer import AUDIENCE, BaoIssuer
from tests.servers.live import METHODS, POLICY, Client, Live, vault_settings
from tests.servers.live_jobs import GRANT
from tests.servers.openbao import OpenBao
from tests.wire.recorder import Recorder, apart, lines, together

RECORDED = Path(__file__).with_name("recorded.json")
UNKNOWN_FIELD = b"\xfa\x3e\x02hi"
NOT_A_UUID = "1"
MAKES = {"CreateKey", "PutSecret", "AddOperator", "CreateTarget"}
MANY_REFUSALS = "\n[server.limits]\nrefusals_at_once = 1000\n"
JOBS = """
@id("jobs") permit (principal is Pipeline, action, resource == Broker::"broker");
"""
SECRETS = {"team/app/db": {"password": b"canary-of-the-wire"}, "team/other": {"key": b"another-canary"}}


@pytest.fixture
def broker(tmp_path: Path, openbao: OpenBao) -> Iterator[Live]:
    """A broker of this test's own, which writes down every refusal, however many there are."""
    made = Live(tmp_path / "broker", "--allow-target", openbao.host, "--allow-issuer", openbao.host)
    try:
        made.start()
        openbao.write_token(made.folder / "credentials")
        made.config.write_text(made.config.read_text() + MANY_REFUSALS)
        made.allow_transfer_files()
        with made.client() as admin:
            admin.ask("SetPolicy", text=POLICY + GRANT + JOBS, expected_version=1)
            admin.ask("CreateTarget", name="bao", vault=vault_settings(openbao))
        yield made
    finally:
        made.close()


def test_the_wire_is_as_it_was_recorded(broker: Live, openbao: OpenBao) -> None:
    recorder = Recorder(broker)
    with broker.client() as admin, Client(broker.pipelines, broker.ca, None, None) as anonymous:
        nobody = broker.operator(admin, "nobody", "nothing")
        at_the_gate(recorder, admin, anonymous)
        jobs(recorder, admin, anonymous, openbao)
        operators(recorder, admin, nobody, openbao)
    found = lines(recorder.found)
    if os.environ.get("WIRE") == "record":
        RECORDED.write_text(together(found), encoding="utf-8")
    recorded = apart(RECORDED.read_text(encoding="utf-8"))
    assert {name: answer for name, answer in found.items() if recorded.get(name) != answer} == {}
    assert found.keys() == recorded.keys()


def request(rpc: str, **fields: Any) -> bytes:
    return bytes(GetMessageClass(METHODS[rpc].input_type)(**fields).SerializeToString())


def at_the_gate(recorder: Recorder, admin: Client, anonymous: Client) -> None:
    """What no method is asked about."""
    for rpc, method in METHODS.items():
        recorder.send(anonymous.channel, rpc, "no identity", b"")
        recorder.send(admin.channel, rpc, "unknown field", UNKNOWN_FIELD)
        recorder.send(admin.channel, rpc, "no message of this method", b"\xff\xff")
        recorder.send(admin.channel, rpc, "too large", bytes((1 << 20) + 1))
        if "request_id" in method.input_type.fields_by_name:
            recorder.send(admin.channel, rpc, "request id that is none", request(rpc, request_id=NOT_A_UUID))
    recorder.send(admin.channel, "NoSuchMethod", "no such method", b"")
    recorder.send(anonymous.channel, "NoSuchMethod", "no such method, no identity", b"")
    recorder.send(admin.channel, "CreateKey", "no message", [])
    recorder.send(admin.channel, "CreateKey", "unknown number of an enum", b"\x10\x63")
    recorder.send(admin.channel, "GetKey", "NUL in a text", b"\x0a\x01\x00")
    recorder.send(admin.channel, "Sign", "no choice of a oneof", request("Sign", name="a"))
    for kind, metadata in {
        "two identities": (("authorization", "Bearer brs_x"),),
        "two authorizations": (("authorization", "Bearer a"), ("authorization", "Bearer b")),
        "another scheme": (("authorization", "Basic a"),),
    }.items():
        recorder.send(admin.channel, "WhoAmI", kind, b"", metadata=metadata)


def jobs(recorder: Recorder, admin: Client, anonymous: Client, openbao: OpenBao) -> None:
    """What pipelines call, well and badly."""
    ci = BaoIssuer(openbao)
    for name, fields in SECRETS.items():
        admin.ask("PutSecret", name=name, fields=fields)
    admin.ask("CreateTrustRule", rule=rule_for(ci, openbao))

    def send(rpc: str, kind: str, token: str, **fields: Any) -> Any:
        bearer = (("authorization", f"Bearer {token}"),)
        return recorder.send(anonymous.channel, rpc, kind, request(rpc, **fields), metadata=bearer)

    number, other = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
    db = ["team/app/db#password"]
    token = ci.token()
    opened = send("Login", "sound", token, request_id=number)
    assert opened is not None, recorder.found["Login"]["sound"]
    send("Login", "sound, again", token, request_id=number)
    send("Login", "forged", token[:-8] + "AAAAAAAA")
    send("Login", "no token at all", "not.one")
    send("Login", "session token", opened.session_token)
    fetched = send("FetchSecrets", "by identity token", ci.token(), references=db, request_id=other)
    session = fetched.session_token
    send("FetchSecrets", "by session token", session, references=db)
    send("FetchSecrets", "denied", session, references=["team/other"])
    send("FetchSecrets", "unknown", session, references=["team/app/none", *db])
    send("FetchSecrets", "partly", session, references=["team/app/none", *db], partial=True)
    send("FetchSecrets", "not a name", session, references=["#"])
    send("FetchSecrets", "nothing asked for", session)
    send("RenewSession", "sound", session, ttl=Duration(seconds=60))
    send("RenewSession", "identity token", ci.token())
    send("RenewSession", "no duration", session, ttl=Duration(seconds=-1))
    send("Sign", "session token", session, name="a", input={"message": b"m"})
    for kind in ("sound", "again"):
        send("EndSession", kind, session)
    send("RenewSession", "session that is over", session)
    send("RenewSession", "unknown session", "brs_" + "A" * 43)


def rule_for(ci: BaoIssuer, openbao: OpenBao) -> trust_pb2.TrustRule:
    return trust_pb2.TrustRule(
        name="deploy",
        preset=trust_pb2.PRESET_GENERIC,
        issuer=ci.url,
        audience=AUDIENCE,
        matchers=[
            trust_pb2.Matcher(claim="sub", exact=ci.entity),
            trust_pb2.Matcher(claim="project_id", exact=ci.project),
        ],
        pipeline="deploy",
        max_session=Duration(seconds=600),
        ca_pem=openbao.ca_pem,
    )


def operators(recorder: Recorder, admin: Client, nobody: Client, openbao: OpenBao) -> None:
    """Each request of the story: denied, empty, of an unknown thing, as a dry run, sound, again, and changed."""
    parts = story(openbao, admin.ask("GetPolicy").policy.version)
    answer: Any = None
    counted = 0
    while True:
        try:
            rpc, fields = parts.send(answer)
        except StopIteration:
            return
        counted += 1
        known = METHODS[rpc].input_type.fields_by_name
        dry = {"validate_only": True} if "validate_only" in known else {}
        again = {"request_id": f"{counted:08d}-1111-4111-8111-111111111111"} if "request_id" in known else {}
        recorder.send(nobody.channel, rpc, "denied", request(rpc, **fields))
        if fields:
            recorder.send(admin.channel, rpc, "empty", request(rpc, **dry))
        if "name" in fields and rpc not in MAKES:
            recorder.send(admin.channel, rpc, "unknown", request(rpc, **(fields | {"name": "nothing"} | dry)))
        if dry:
            recorder.send(admin.channel, rpc, "dry run", request(rpc, **fields, **dry))
        answer = recorder.send(admin.channel, rpc, "sound", request(rpc, **fields, **again))
        assert answer is not None, (rpc, recorder.found[rpc])
        if again:
            recorder.send(admin.channel, rpc, "again", request(rpc, **fields, **again))
            changed = {"name": fresh("other")} if "name" in fields else {}
            recorder.send(admin.channel, rpc, "changed", request(rpc, **(fields | changed), **again, **dry))
