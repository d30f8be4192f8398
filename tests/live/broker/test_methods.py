"""Every RPC of the descriptors against the running broker: its audit record, its permission, its idempotency."""

from __future__ import annotations

import json
import random
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from broker import setup
from tests.live.broker.live_story import EC_P256, SIGN, Story, everything, fresh, story
from tests.servers.live import FOR_PIPELINES, METHODS, OPTIONS, POLICY, Client, Live
from tests.servers.openbao import OpenBao
from tests.servers.refusals import Refused

BY_OTHERS = {"AbortOperation", "GetApproval", "Approve", "Reject"}
"""What is about something that is not there in the story; it has tests of its own."""

MUTATIONS = {name for name, method in METHODS.items() if "request_id" in method.input_type.fields_by_name} - {
    "Login",
    "FetchSecrets",
    *BY_OTHERS,
}  # whose repetitions have tests of their own

OTHERS = 3
"""So many of the other RPCs are tried under each permit, others in each run; `make soak` tries them all."""

DONE_ANEW = {"ImportKey", "ConfirmImport", "ExportKey"}
"""A repetition looks again at what is at the target, or wraps the key anew: each answer is of the time of asking."""


NOT_FOUND = [f"{noun}_NOT_FOUND" for noun in ("KEY", "OPERATION", "TARGET", "OPERATOR", "SECRET", "TRUST_RULE")]


def lasting(text: str) -> str:
    """An import as text, without the time of its proof and the hash of what was wrapped."""
    return re.sub(r'prove_time \{[^}]*\}|blob_sha256: "[^"]*"', "", text)


def told(parts: Story) -> Iterator[tuple[str, dict[str, Any], list[Any]]]:
    """The story's requests one by one; the caller puts the answer into the list."""
    answer: Any = None
    while True:
        try:
            rpc, fields = parts.send(answer)
        except StopIteration:
            return
        answers: list[Any] = []
        yield rpc, fields, answers
        [answer] = answers


def asked(bao: OpenBao) -> dict[str, dict[str, Any]]:
    """A sound request of each RPC, of things that do not exist: what is decided on it is the permission alone."""
    stand_in = {"SignResponse": {"signature": b"s"}, "EncryptResponse": {"ciphertext": b"\x01\0\0\0\x01" + b"c" * 40}}
    requests: dict[str, dict[str, Any]] = {}
    parts = story(bao, 1)
    answer: Any = None
    while True:
        try:
            rpc, fields = parts.send(answer)
        except StopIteration:
            return requests
        response = METHODS[rpc].output_type
        answer = GetMessageClass(response)(**stand_in.get(response.name, {}))
        if rpc == "CreateTarget":
            answer.target.kek_thumbprint = "0" * 64
        requests.setdefault(rpc, fields)


@pytest.fixture(scope="module")
def admin(live: Live) -> Client:
    return live.client()


@pytest.fixture(scope="module")
def nobody(live: Live, admin: Client) -> Client:
    """An operator whom nothing is permitted."""
    return live.operator(admin, fresh("nobody"), "nothing")


@contextmanager
def one_outcome(live: Live) -> Iterator[dict[str, Any]]:
    """What is in the block makes exactly one outcome record, which is handed over afterwards."""
    count, found = len(live.records()), dict[str, Any]()
    yield found
    [outcome] = live.since(count)
    found.update(outcome)


def version_in_force(admin: Client) -> int:
    version: int = admin.ask("GetPolicy").policy.version
    return version


def test_the_story_has_every_rpc(openbao: OpenBao) -> None:
    assert set(asked(openbao)) == set(METHODS) - FOR_PIPELINES - BY_OTHERS


# ---- AU-09, P1 -------------------------------------------------------------------------------------------------------


def test_AU_09_every_rpc_that_is_allowed_leaves_one_outcome(live: Live, admin: Client, openbao: OpenBao) -> None:
    for rpc, fields, answers in told(story(openbao, version_in_force(admin))):
        with one_outcome(live) as outcome:
            answers.append(admin.ask(rpc, **fields))
        service = METHODS[rpc].containing_service.name
        assert outcome["rpc"] == f"{service}/{rpc}"
        assert (outcome["outcome"], outcome["reason"]) == ("ok", ""), rpc
        assert (outcome["principal"], outcome["authn"]) == ("operator/admin", "mtls")
        assert (outcome["decision"], outcome["policies"]) == ("allow", ["admins"]), rpc
        assert outcome["policy_version"] > 0
        assert outcome["resource"], rpc


def test_AU_09_every_rpc_that_the_policy_denies_leaves_one_outcome(
    live: Live, nobody: Client, openbao: OpenBao
) -> None:
    for rpc, fields in asked(openbao).items():
        with one_outcome(live) as outcome:
            error = nobody.refusal(rpc, **fields)
        assert (error.code, error.reason) == ("PERMISSION_DENIED", "POLICY_DENIED"), rpc
        assert (outcome["call"], outcome["outcome"], outcome["reason"]) == (error.call_id, error.code, error.reason)
        assert outcome["decision"] == "deny"
        assert outcome["principal"].startswith("operator/nobody-")
        assert outcome["resource"], rpc


def test_AU_09_every_rpc_that_is_refused_as_invalid_leaves_one_outcome(live: Live, admin: Client) -> None:
    for rpc in METHODS:
        with one_outcome(live) as outcome, pytest.raises(Refused) as caught:
            admin.send(rpc, b"\xfa\x3e\x02hi")  # a field that no request has
        assert (caught.value.code, caught.value.reason) == ("INVALID_ARGUMENT", "FIELD_UNKNOWN"), rpc
        assert (outcome["call"], outcome["reason"]) == (caught.value.call_id, "FIELD_UNKNOWN")
        assert outcome["principal"] == "operator/admin"


def test_AU_09_every_rpc_without_an_identity_leaves_one_outcome_or_is_counted(live: Live) -> None:
    """The first 20 are recorded one by one; a flood is counted, and the count recorded (AU-15)."""
    count, refused = len(live.records()), 0
    with Client(live.pipelines, live.ca, None, None) as anonymous:
        for rpc in METHODS:
            with pytest.raises(Refused) as caught:
                anonymous.send(rpc, b"")
            assert (caught.value.code, caught.value.reason) == ("UNAUTHENTICATED", "CREDENTIALS_MISSING"), rpc
            refused += 1
    outcomes = live.since(count)
    assert 10 <= len(outcomes) <= refused
    assert {one["principal"] for one in outcomes} == {""}
    assert {one["reason"] for one in outcomes} == {"CREDENTIALS_MISSING"}


def test_AU_09_a_method_that_does_not_exist_leaves_one_outcome(live: Live, admin: Client) -> None:
    with one_outcome(live) as outcome, pytest.raises(grpc.RpcError) as caught:
        admin.channel.unary_unary("/broker_api.v1.KeyService/ExportKey", bytes, bytes)(b"", timeout=200)
    code: Any = caught.value
    assert code.code() is grpc.StatusCode.UNIMPLEMENTED
    assert (outcome["outcome"], outcome["reason"]) == ("UNIMPLEMENTED", "METHOD_UNKNOWN")
    assert "ExportKey" not in json.dumps(outcome)


def test_AN_25_the_operators_port_has_no_place_for_an_unauthenticated_caller(live: Live) -> None:
    key, _ = setup.make_request()
    with Client(live.address, live.ca, None, None) as anonymous:
        assert anonymous.refusal("WhoAmI").code == "UNAVAILABLE"
    assert key
    with grpc.secure_channel(live.address, grpc.ssl_channel_credentials(live.ca), options=OPTIONS) as channel:
        health = channel.unary_unary("/grpc.health.v1.Health/Check", bytes, bytes)
        with pytest.raises(grpc.RpcError):
            health(b"", timeout=200)


# ---- AZ-05, P6, AN-28 ------------------------------------------------------------------------------------------------


def only_what_is_permitted(live: Live, admin: Client, bao: OpenBao, others: int) -> None:
    """Under a permit for one RPC, for each in turn, that one passes, and of so many others none does."""
    name = fresh("solo")
    solo = live.operator(admin, name, "nothing")
    requests = asked(bao)
    requests["SetPolicy"]["expected_version"] = 2**31 - 2  # allowed, and still not carried out
    for one in METHODS:
        admin.ask("SetOperatorGroups", name=name, groups=[f"only-{one.lower()}"])
        rest = sorted(requests.keys() - {one})
        for rpc in [*([one] if one in requests else []), *random.sample(rest, min(others, len(rest)))]:
            fields = requests[rpc]
            dry = {"validate_only": True} if rpc in MUTATIONS else {}
            try:
                solo.ask(rpc, **fields, **dry)
                passed = True
            except Refused as error:
                passed = error.code != "PERMISSION_DENIED"
            assert passed == (rpc == one), f"{rpc} under a permit for {one}"


def test_AZ_05_a_permit_for_one_rpc_lets_that_one_pass_and_no_other(
    live: Live, admin: Client, openbao: OpenBao
) -> None:
    only_what_is_permitted(live, admin, openbao, OTHERS)


def test_P6_a_policy_is_honoured_at_the_next_call_of_an_open_connection(live: Live, admin: Client) -> None:
    name = fresh("next")
    caller = live.operator(admin, name, "nothing")
    permit = f'\n@id("{name}") permit (principal == Operator::"{name}", action == Action::"ListKeys", resource);'
    try:
        for _ in range(3):
            assert caller.refusal("ListKeys").reason == "POLICY_DENIED"
            admin.ask("SetPolicy", text=POLICY + permit, expected_version=version_in_force(admin))
            assert list(caller.ask("ListKeys").keys) == []
            admin.ask("SetPolicy", text=POLICY, expected_version=version_in_force(admin))
    finally:
        if admin.ask("GetPolicy").policy.text != POLICY:
            admin.ask("SetPolicy", text=POLICY, expected_version=version_in_force(admin))
    assert caller.refusal("ListKeys").reason == "POLICY_DENIED"


def test_AN_28_revocation_and_removal_reach_an_open_connection(live: Live, admin: Client) -> None:
    for rpc, reason in (("RevokeCertificates", "CERTIFICATE_REVOKED"), ("RemoveOperator", "OPERATOR_UNKNOWN")):
        name = fresh("gone")
        caller = live.operator(admin, name, "only-whoami")
        assert caller.ask("WhoAmI").principal == f"operator/{name}"
        admin.ask(rpc, name=name)
        error = caller.refusal("WhoAmI")
        assert (error.code, error.reason) == ("UNAUTHENTICATED", reason)
        assert caller.refusal("WhoAmI").reason == reason


def test_a_group_taken_away_is_gone_at_the_next_call(live: Live, admin: Client) -> None:
    name = fresh("group")
    caller = live.operator(admin, name, "only-gethsm")
    assert caller.ask("GetHsm").answering
    admin.ask("SetOperatorGroups", name=name, groups=["nothing"])
    assert caller.refusal("GetHsm").reason == "POLICY_DENIED"


# ---- idempotency (AIP-155), dry run (AIP-163) ------------------------------------------------------------------------


def test_every_mutation_is_carried_out_once_under_its_request_id_and_not_at_all_as_a_dry_run(
    live: Live, admin: Client, openbao: OpenBao
) -> None:
    seen = set()
    for rpc, fields, answers in told(story(openbao, version_in_force(admin))):
        if rpc not in MUTATIONS:
            answers.append(admin.ask(rpc, **fields))
            continue
        seen.add(rpc)
        look = lasting if rpc in DONE_ANEW else str
        before = everything(admin, live, openbao)
        admin.ask(rpc, validate_only=True, **fields)
        admin.ask(rpc, validate_only=True, request_id=str(uuid.uuid4()), **fields)
        assert everything(admin, live, openbao) == before, f"{rpc} as a dry run"
        number = str(uuid.uuid4())
        answers.append(admin.ask(rpc, request_id=number, **fields))
        after = list(map(look, everything(admin, live, openbao)))
        with one_outcome(live) as outcome:
            again = admin.ask(rpc, request_id=number, **fields)
        assert outcome["outcome"] == "ok"
        assert outcome["request"] == number
        if rpc == "AddOperator":  # its certificate is a fresh one
            assert again.operator == answers[0].operator
        elif rpc == "ExportKey":  # its file is a fresh one
            assert look(str(getattr(again, "import"))) == look(str(getattr(answers[0], "import")))
            assert again.transfer_file != answers[0].transfer_file
        else:
            assert look(str(again)) == look(str(answers[0])), rpc
        if "name" in fields:
            other = admin.refusal(rpc, request_id=number, **(fields | {"name": f"{fields['name']}-other"}))
            assert other.reason in {"REQUEST_ID_REUSED", "OPERATION_NAME_INVALID", "OWN_KEY_UNKNOWN", *NOT_FOUND}
        assert list(map(look, everything(admin, live, openbao))) == after, f"{rpc} twice, or with another name"
    assert seen == MUTATIONS


def test_a_request_id_belongs_to_its_principal(live: Live, admin: Client) -> None:
    number, first, second = str(uuid.uuid4()), fresh("mine"), fresh("yours")
    other = live.operator(admin, fresh("other"), "only-createkey")
    admin.ask("CreateKey", name=first, type=EC_P256, usage=SIGN, request_id=number)
    assert other.ask("CreateKey", name=second, type=EC_P256, usage=SIGN, request_id=number).key.name == second
    reused = admin.refusal("CreateKey", name=second, type=EC_P256, usage=SIGN, request_id=number)
    assert (reused.code, reused.reason) == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")
    for bad in ("1", number.replace("-", ""), "0" * 36):
        error = admin.refusal("CreateKey", name=first, type=EC_P256, usage=SIGN, request_id=bad)
        assert error.reason == "REQUEST_ID_INVALID"
