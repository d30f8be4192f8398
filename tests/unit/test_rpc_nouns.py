"""One file a noun: what reaches the core, and what the core's answer looks like on the wire."""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, get_type_hints

import pytest
from broker_api.v1 import audit_pb2, hsm_pb2, imports_pb2, keys_pb2, operators_pb2, policies_pb2, targets_pb2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.protobuf.duration_pb2 import Duration

from broker.core import guard, model
from broker.core.call import Call
from broker.core.errors import BrokerError, InvalidRequest, PermissionDenied, Unavailable
from broker.core.key_use import Encrypted, Signed
from broker.core.operators import Issued
from broker.core.page import Page
from broker.core.policies import Explanation
from broker.rpc import table
from broker.rpc.audit import AuditMethods
from broker.rpc.codec import der_from_jose
from broker.rpc.hsm import HsmMethods
from broker.rpc.imports import ImportMethods
from broker.rpc.keys import KeyMethods
from broker.rpc.operators import OperatorMethods
from broker.rpc.pages import PageTokens
from broker.rpc.policies import PolicyMethods
from broker.rpc.nouns import answers
from broker.rpc.targets import TargetMethods

THEN = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
PAGES = PageTokens(secrets.token_bytes(32))
ALICE = model.Principal(kind="operator", name="alice", groups=("admins",), method="mtls", credential="ab12")
PRIVATE = ec.generate_private_key(ec.SECP256R1())
SPKI = PRIVATE.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

KEY = model.Key(
    name="payments",
    type=model.KeyType.EC_P256,
    usage=model.KeyUsage.SIGN,
    exportable=True,
    labels={"team": "pay"},
    owner="operator/alice",
    state=model.KeyState.DESTROY_SCHEDULED,
    primary=2,
    latest=3,
    created_at=THEN,
    destroy_at=THEN + timedelta(days=7),
    revision=4,
)
VERSION = model.KeyVersion(
    key="payments",
    number=2,
    state=model.VersionState.ENABLED,
    hsm_id=b"i" * 16,
    public_key=SPKI,
    sealed=True,
    created_at=THEN,
)


def call(rpc: str) -> Call:
    return Call(id="c", rpc=rpc, principal=ALICE, peer="", now=lambda: THEN)


class Noun:
    """Answers each method with what it was given, and keeps the arguments after the call."""

    def __init__(self, **answers: Any) -> None:
        self._answers = answers
        self.asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        def answer(_call: Call, *args: Any, **options: Any) -> Any:
            self.asked.append((name, args, options))
            return self._answers[name]

        return answer


def keys(**answers: Any) -> tuple[Any, KeyMethods]:
    noun: Any = Noun(**answers)
    return noun, KeyMethods(noun, noun, PAGES)


def test_create_key() -> None:
    noun, rpc = keys(create=KEY)
    request = keys_pb2.CreateKeyRequest(
        name="payments", type=keys_pb2.KEY_TYPE_EC_P256, usage=keys_pb2.KEY_USAGE_SIGN, exportable=True,
        labels={"team": "pay"}, owner="operator/alice",
    )  # fmt: skip
    made = rpc.create_key(call("KeyService/CreateKey"), request).key
    options = {"exportable": True, "labels": {"team": "pay"}, "owner": "operator/alice"}
    assert noun.asked == [("create", ("payments", model.KeyType.EC_P256, model.KeyUsage.SIGN), options)]
    assert (made.name, made.type, made.usage) == ("payments", keys_pb2.KEY_TYPE_EC_P256, keys_pb2.KEY_USAGE_SIGN)
    assert (made.state, made.primary_version, made.revision) == (keys_pb2.KEY_STATE_DESTROY_SCHEDULED, 2, 4)
    assert (dict(made.labels), made.owner, made.exportable) == ({"team": "pay"}, "operator/alice", True)
    assert made.create_time.ToDatetime(UTC) == THEN
    assert made.destroy_time.ToDatetime(UTC) == THEN + timedelta(days=7)


@pytest.mark.parametrize("field", ["type", "usage"])
def test_AN_36_a_key_needs_its_type_and_usage(field: str) -> None:
    noun, rpc = keys(create=KEY)
    request = keys_pb2.CreateKeyRequest(name="a", type=keys_pb2.KEY_TYPE_AES_128, usage=keys_pb2.KEY_USAGE_SIGN)
    request.ClearField(field)  # type: ignore[arg-type]  # one of two known names
    with pytest.raises(InvalidRequest) as refused:
        rpc.create_key(call("KeyService/CreateKey"), request)
    assert refused.value.metadata == {"field": field}
    assert noun.asked == []


def test_lists_continue_where_they_stopped() -> None:
    noun, rpc = keys(page=Page(items=[KEY], next=("payments",)))
    first = rpc.list_keys(call("KeyService/ListKeys"), keys_pb2.ListKeysRequest())
    assert [key.name for key in first.keys] == ["payments"]
    rpc.list_keys(call("KeyService/ListKeys"), keys_pb2.ListKeysRequest(page_size=7, page_token=first.next_page_token))
    assert noun.asked == [("page", ((), 100), {}), ("page", (("payments",), 7), {})]


def test_AZ_04_a_token_of_one_keys_versions_does_not_serve_another() -> None:
    _, rpc = keys(versions=Page(items=[VERSION], next=("payments", 2)))
    this = call("KeyService/ListKeyVersions")
    page = rpc.list_key_versions(this, keys_pb2.ListKeyVersionsRequest(name="payments"))
    assert page.versions[0].state == keys_pb2.KEY_VERSION_STATE_ENABLED
    assert page.versions[0].sealed
    assert len(page.versions[0].public_key_sha256) == 64
    other = keys_pb2.ListKeyVersionsRequest(name="payroll", page_token=page.next_page_token)
    with pytest.raises(InvalidRequest):
        rpc.list_key_versions(this, other)


def test_get_public_key() -> None:
    _, rpc = keys(public_key=(KEY, VERSION))
    found = rpc.get_public_key(call("KeyService/GetPublicKey"), keys_pb2.GetPublicKeyRequest(name="payments"))
    assert found.version == 2
    assert found.pem.startswith("-----BEGIN PUBLIC KEY-----")
    assert json.loads(found.jwk)["alg"] == "ES256"


@pytest.mark.parametrize("prehashed", [False, True])
def test_sign_and_verify_in_the_jose_form(*, prehashed: bool) -> None:
    der = PRIVATE.sign(b"m", ec.ECDSA(hashes.SHA256()))
    signed = Signed(signatures=[der], version=2, algorithm=model.SignatureAlgorithm.ES256)
    noun, rpc = keys(sign=signed, verify=(True, 2))
    given = keys_pb2.SignInput(digest=b"m") if prehashed else keys_pb2.SignInput(message=b"m")
    jose = keys_pb2.SIGNATURE_ENCODING_JOSE
    made = rpc.sign(call("KeyService/Sign"), keys_pb2.SignRequest(name="p", input=given, encoding=jose))
    assert len(made.signature) == 64
    assert der_from_jose(made.signature, model.SignatureAlgorithm.ES256) == der
    assert made.algorithm == keys_pb2.SIGNATURE_ALGORITHM_ES256
    asked = keys_pb2.VerifyRequest(name="p", input=given, signature=made.signature, encoding=jose)
    assert rpc.verify(call("KeyService/Verify"), asked).valid
    assert noun.asked == [
        ("sign", ("p", None, [b"m"]), {"prehashed": prehashed}),
        ("verify", ("p", 0, None, b"m", der), {"prehashed": prehashed}),
    ]


def test_batch_sign_keeps_the_order() -> None:
    signed = Signed(signatures=[b"1", b"2"], version=1, algorithm=model.SignatureAlgorithm.PS256)
    noun, rpc = keys(sign=signed)
    inputs = [keys_pb2.SignInput(message=b"a"), keys_pb2.SignInput(message=b"b")]
    made = rpc.batch_sign(call("KeyService/BatchSign"), keys_pb2.BatchSignRequest(name="p", inputs=inputs))
    assert list(made.signatures) == [b"1", b"2"]
    assert noun.asked[0][1] == ("p", None, [b"a", b"b"])


MESSAGE = keys_pb2.SignInput(message=b"a")


@pytest.mark.parametrize(
    "inputs",
    [
        [],
        [MESSAGE] * 101,
        [MESSAGE, keys_pb2.SignInput(digest=b"a")],
        [keys_pb2.SignInput(message=bytes(64 * 1024 + 1))],
        [keys_pb2.SignInput(digest=bytes(65))],
    ],
)
def test_AZ_08_a_batch_has_limits(inputs: list[keys_pb2.SignInput]) -> None:
    noun, rpc = keys()
    with pytest.raises(InvalidRequest):
        rpc.batch_sign(call("KeyService/BatchSign"), keys_pb2.BatchSignRequest(name="p", inputs=inputs))
    assert noun.asked == []


def test_the_largest_message_is_taken() -> None:
    signed = Signed(signatures=[b"1"], version=1, algorithm=model.SignatureAlgorithm.PS256)
    noun, rpc = keys(sign=signed)
    biggest = keys_pb2.SignInput(message=bytes(64 * 1024))
    rpc.sign(call("KeyService/Sign"), keys_pb2.SignRequest(name="p", input=biggest))
    assert len(noun.asked) == 1


def test_encrypt_and_decrypt() -> None:
    done = Encrypted(ciphertext=b"c", version=3, algorithm=model.EncryptionAlgorithm.AES_GCM)
    noun, rpc = keys(encrypt=done, decrypt=(b"p", 3))
    made = rpc.encrypt(call("KeyService/Encrypt"), keys_pb2.EncryptRequest(name="k", plaintext=b"p", aad=b"a"))
    assert (made.ciphertext, made.version, made.algorithm) == (b"c", 3, keys_pb2.ENCRYPTION_ALGORITHM_AES_GCM)
    request = keys_pb2.DecryptRequest(name="k", ciphertext=b"c", aad=b"a", version=3)
    assert rpc.decrypt(call("KeyService/Decrypt"), request).plaintext == b"p"
    assert noun.asked == [("encrypt", ("k", None, b"p", b"a"), {}), ("decrypt", ("k", 3, None, b"c", b"a"), {})]


TOO_MUCH = bytes(64 * 1024 + 1)


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("encrypt", keys_pb2.EncryptRequest(plaintext=TOO_MUCH)),
        ("encrypt", keys_pb2.EncryptRequest(aad=TOO_MUCH)),
        ("decrypt", keys_pb2.DecryptRequest(ciphertext=bytes(64 * 1024 + 65))),
        ("decrypt", keys_pb2.DecryptRequest(aad=TOO_MUCH)),
        ("decrypt", keys_pb2.DecryptRequest(version=-1)),
        ("verify", keys_pb2.VerifyRequest(input=MESSAGE, signature=bytes(1025))),
        ("verify", keys_pb2.VerifyRequest(input=MESSAGE, version=-1)),
        ("get_public_key", keys_pb2.GetPublicKeyRequest(version=-1)),
    ],
)
def test_what_is_over_a_limit_never_reaches_the_core(method: str, request_: Any) -> None:
    noun, rpc = keys()
    with pytest.raises(InvalidRequest):
        getattr(rpc, method)(call("KeyService/X"), request_)
    assert noun.asked == []


@pytest.mark.parametrize(
    ("method", "core", "kind"),
    [
        ("rotate_key", "rotate", keys_pb2.RotateKeyRequest),
        ("enable_key", "enable", keys_pb2.EnableKeyRequest),
        ("disable_key", "disable", keys_pb2.DisableKeyRequest),
        ("cancel_key_destruction", "cancel_destruction", keys_pb2.CancelKeyDestructionRequest),
        ("seal_key", "seal", keys_pb2.SealKeyRequest),
        ("get_key", "get", keys_pb2.GetKeyRequest),
    ],
)
def test_AZ_05_each_method_calls_its_own(method: str, core: str, kind: Any) -> None:
    noun, rpc = keys(**{core: KEY})
    assert getattr(rpc, method)(call("KeyService/X"), kind(name="payments")).key.name == "payments"
    assert noun.asked == [(core, ("payments",), {})]


@pytest.mark.parametrize(("delay", "expected"), [(None, None), (Duration(seconds=86400), timedelta(days=1))])
def test_schedule_destruction(delay: Duration | None, expected: timedelta | None) -> None:
    noun, rpc = keys(schedule_destruction=KEY)
    rpc.schedule_key_destruction(call("X/Y"), keys_pb2.ScheduleKeyDestructionRequest(name="payments", delay=delay))
    assert noun.asked == [("schedule_destruction", ("payments", expected), {})]


SETTINGS = {"address": "https://vault.example:8200", "mount": "transit", "ca_pem": "PEM", "token_file": "t"}
TARGET = model.Target(
    name="vault-eu", kind="vault", settings=SETTINGS, kek_id="wrapping", kek_thumbprint="ab", created_at=THEN
)


def test_targets_both_ways() -> None:
    noun: Any = Noun(create=TARGET, get=TARGET, repin=TARGET, delete=None, page=Page(items=[TARGET], next=()))
    rpc = TargetMethods(noun, PAGES)
    vault = targets_pb2.VaultSettings(**SETTINGS)
    made = rpc.create_target(
        call("T/C"), targets_pb2.CreateTargetRequest(name="vault-eu", vault=vault, expected_kek_thumbprint="ab")
    )
    assert noun.asked == [("create", ("vault-eu", "vault", SETTINGS, "ab"), {})]
    assert made.target.vault == vault
    assert rpc.get_target(call("T/G"), targets_pb2.GetTargetRequest(name="vault-eu")).target == made.target
    assert rpc.repin_target(call("T/R"), targets_pb2.RepinTargetRequest(name="vault-eu")).target == made.target
    listed = rpc.list_targets(call("T/L"), targets_pb2.ListTargetsRequest())
    assert (list(listed.targets), listed.next_page_token) == ([made.target], "")
    rpc.delete_target(call("T/D"), targets_pb2.DeleteTargetRequest(name="vault-eu"))
    assert noun.asked[-1] == ("delete", ("vault-eu",), {})


def test_a_target_needs_settings_and_short_ones() -> None:
    noun: Any = Noun()
    rpc = TargetMethods(noun, PAGES)
    for settings in (None, targets_pb2.VaultSettings(ca_pem="x" * (64 * 1024 + 1))):
        with pytest.raises(InvalidRequest):
            rpc.create_target(call("T/C"), targets_pb2.CreateTargetRequest(name="a", vault=settings))
    assert noun.asked == []


def test_check_target() -> None:
    noun: Any = Noun(check=[model.Probe(name="kek", passed=False, detail="It changed.")])
    found = TargetMethods(noun, PAGES).check_target(call("T/C"), targets_pb2.CheckTargetRequest(name="a")).findings
    assert [(each.name, each.passed, each.detail) for each in found] == [("kek", False, "It changed.")]


IMPORT = model.Import(
    key="payments",
    version=1,
    target="vault-eu",
    remote_name="payments",
    remote_version="1",
    state=model.ImportState.PROVEN,
    kek_thumbprint="ab",
    blob_sha256="cd",
    failure="",
    started_at=THEN,
)


def test_imports() -> None:
    noun: Any = Noun(import_key=IMPORT, prove=IMPORT, page=Page(items=[IMPORT], next=("payments", 1, "vault-eu")))
    rpc = ImportMethods(noun, PAGES)
    made = rpc.import_key(call("I/I"), imports_pb2.ImportKeyRequest(name="payments", version=1, target="vault-eu"))
    wire = getattr(made, "import")
    assert (wire.key, wire.state, wire.HasField("prove_time")) == ("payments", imports_pb2.IMPORT_STATE_PROVEN, False)
    proven = rpc.prove_import(call("I/P"), imports_pb2.ProveImportRequest(name="payments", target="vault-eu"))
    assert getattr(proven, "import") == wire
    listed = rpc.list_imports(call("I/L"), imports_pb2.ListImportsRequest(target="vault-eu"))
    again = imports_pb2.ListImportsRequest(target="vault-eu", page_token=listed.next_page_token)
    rpc.list_imports(call("I/L"), again)
    assert noun.asked == [
        ("import_key", ("payments", 1, "vault-eu", ""), {}),
        ("prove", ("payments", 0, "vault-eu"), {}),
        ("page", ("", "vault-eu", (), 100), {}),
        ("page", ("", "vault-eu", ("payments", 1, "vault-eu"), 100), {}),
    ]
    with pytest.raises(InvalidRequest):
        rpc.list_imports(call("I/L"), imports_pb2.ListImportsRequest(page_token=listed.next_page_token))


BOB = model.Operator(
    name="bob", groups=("admins",), state=model.OperatorState.ENABLED, not_before=THEN, created_at=THEN, revision=2
)
ISSUED = Issued(pem=b"PEM", ca_pem=b"CA", serial="ab", expires_at=THEN)


def test_operators() -> None:
    answers = {"set_groups": BOB, "revoke": BOB, "remove": BOB, "renew": ISSUED, "issue": ISSUED, "whoami": None}
    noun: Any = Noun(add=(BOB, ISSUED), page=Page(items=[BOB], next=()), **answers)
    rpc = OperatorMethods(noun, PAGES)
    hour = Duration(seconds=3600)
    added = rpc.add_operator(
        call("O/A"), operators_pb2.AddOperatorRequest(name="bob", groups=["admins"], csr_pem="CSR", ttl=hour)
    )
    assert (added.operator.name, added.operator.state) == ("bob", operators_pb2.OPERATOR_STATE_ENABLED)
    assert (added.certificate.pem, added.certificate.ca_pem, added.certificate.serial) == ("PEM", "CA", "ab")
    rpc.renew_certificate(call("O/R"), operators_pb2.RenewCertificateRequest(csr_pem="CSR"))
    rpc.issue_certificate(call("O/I"), operators_pb2.IssueCertificateRequest(name="bob", csr_pem="CSR", ttl=hour))
    rpc.set_operator_groups(call("O/S"), operators_pb2.SetOperatorGroupsRequest(name="bob", groups=["a"]))
    rpc.revoke_certificates(call("O/V"), operators_pb2.RevokeCertificatesRequest(name="bob"))
    rpc.remove_operator(call("O/M"), operators_pb2.RemoveOperatorRequest(name="bob"))
    assert list(rpc.list_operators(call("O/L"), operators_pb2.ListOperatorsRequest()).operators) == [added.operator]
    assert noun.asked == [
        ("add", ("bob", ["admins"], b"CSR", timedelta(hours=1)), {}),
        ("renew", (b"CSR", None), {}),
        ("issue", ("bob", b"CSR", timedelta(hours=1)), {}),
        ("set_groups", ("bob", ["a"]), {}),
        ("revoke", ("bob",), {}),
        ("remove", ("bob",), {}),
        ("page", ((), 100), {}),
    ]


def test_who_am_i_asks_for_the_record_of_it() -> None:
    noun: Any = Noun(whoami=None)
    me = OperatorMethods(noun, PAGES).who_am_i(call("O/W"), operators_pb2.WhoAmIRequest())
    assert (me.principal, list(me.groups), me.method, me.credential) == ("operator/alice", ["admins"], "mtls", "ab12")
    assert noun.asked == [("whoami", (), {})]


@pytest.mark.parametrize(
    "request_",
    [
        operators_pb2.AddOperatorRequest(name="a", csr_pem="x" * 8193),
        operators_pb2.AddOperatorRequest(name="a", csr_pem="é"),
        operators_pb2.AddOperatorRequest(name="a", groups=["a"] * 17),
    ],
)
def test_bad_operator_requests_never_reach_the_core(request_: operators_pb2.AddOperatorRequest) -> None:
    noun: Any = Noun()
    with pytest.raises(InvalidRequest):
        OperatorMethods(noun, PAGES).add_operator(call("O/A"), request_)
    assert noun.asked == []


DOCUMENT = model.PolicyDocument(version=3, text="permit", author="operator/alice", created_at=THEN)


def test_policies() -> None:
    noun: Any = Noun(get=DOCUMENT, set=DOCUMENT)
    rpc = PolicyMethods(noun, "the schema")
    found = rpc.get_policy(call("P/G"), policies_pb2.GetPolicyRequest())
    assert (found.policy.version, found.policy.text, found.schema) == (3, "permit", "the schema")
    assert rpc.set_policy(call("P/S"), policies_pb2.SetPolicyRequest(text="t", expected_version=2)).policy.version == 3
    assert noun.asked == [("get", (0,), {}), ("set", ("t", 2), {})]
    with pytest.raises(InvalidRequest):
        rpc.set_policy(call("P/S"), policies_pb2.SetPolicyRequest(text="é" * 33_000))


@pytest.mark.parametrize(
    ("resource", "kind", "name"),
    [
        ({"key": "payments"}, "Key", "payments"),
        ({"target": "vault-eu"}, "Target", "vault-eu"),
        ({"operator_resource": "bob"}, "Operator", "bob"),
        ({"broker": True}, "Broker", "broker"),
    ],
)
def test_explain(resource: dict[str, Any], kind: str, name: str) -> None:
    noun: Any = Noun(explain=Explanation(allowed=True, policies=("a",), policy_version=3, sentence="Yes."))
    request = policies_pb2.ExplainPolicyRequest(operator="alice", action="Sign", **resource)
    found = PolicyMethods(noun, "").explain_policy(call("P/E"), request)
    assert (found.allowed, list(found.policies), found.policy_version, found.explanation) == (True, ["a"], 3, "Yes.")
    assert noun.asked == [("explain", ("alice", "Sign", kind, name), {})]


def test_AN_36_not_the_broker_is_no_resource() -> None:
    with pytest.raises(InvalidRequest):
        PolicyMethods(Noun(), "").explain_policy(  # type: ignore[arg-type]  # a stand-in
            call("P/E"), policies_pb2.ExplainPolicyRequest(operator="alice", action="Sign", broker=False)
        )


HEAD = model.AuditHead(chain="c1", sequence=9, hash="ab", signed_at=THEN, signature=b"s")


def test_audit_heads() -> None:
    noun: Any = Noun(state=(SPKI, [HEAD]), sign=[HEAD], page=Page(items=[HEAD], next=("c1", 9)))
    rpc = AuditMethods(noun, PAGES)
    state = rpc.get_audit_state(call("A/G"), audit_pb2.GetAuditStateRequest())
    assert state.public_key_pem.startswith("-----BEGIN PUBLIC KEY-----")
    assert (state.heads[0].chain, state.heads[0].sequence, state.heads[0].signature) == ("c1", 9, b"s")
    assert state.heads[0].sign_time_text == "2026-03-04T05:06:07.000000+00:00"
    assert list(rpc.sign_audit_head(call("A/S"), audit_pb2.SignAuditHeadRequest()).heads) == list(state.heads)
    page = rpc.list_audit_heads(call("A/L"), audit_pb2.ListAuditHeadsRequest(chain="c1", page_size=1))
    rpc.list_audit_heads(call("A/L"), audit_pb2.ListAuditHeadsRequest(chain="c1", page_token=page.next_page_token))
    assert noun.asked[2:] == [("page", ("c1", (), 1), {}), ("page", ("c1", ("c1", 9), 100), {})]
    with pytest.raises(InvalidRequest):
        rpc.list_audit_heads(call("A/L"), audit_pb2.ListAuditHeadsRequest(chain="c" * 129))


REPORT = model.HsmReport(
    module="m",
    library="l",
    token_label="t",
    token_serial="s",
    manufacturer="f",
    model="o",
    firmware="1",
    key_types=(model.KeyType.EC_P256,),
    oaep_hashes=(model.OaepHash.SHA1,),
    exact_wrap=False,
    one_call_wrap=True,
    probes=(model.Probe(name="wrap", passed=True, detail="d"),),
)


class Token:
    """An Hsm as far as this noun asks it."""

    def __init__(self, failure: BrokerError | None = None) -> None:
        self._failure = failure

    def report(self) -> model.HsmReport:
        return REPORT

    def check(self) -> None:
        if self._failure:
            raise self._failure


class Door:
    """A guard that remembers what it was asked."""

    def __init__(self, *, allows: bool = True) -> None:
        self.asked: list[guard.Resource] = []
        self._allows = allows

    def check(self, _call: Call, resource: guard.Resource) -> None:
        self.asked.append(resource)
        if not self._allows:
            raise PermissionDenied("POLICY_DENIED", "No.")


@pytest.mark.parametrize("failure", [None, Unavailable("HSM_UNAVAILABLE", "Away.")])
def test_hsm_tells_what_it_is_even_while_it_is_away(failure: BrokerError | None) -> None:
    token: Any = Token(failure)
    door: Any = Door()
    found = HsmMethods(token, door).get_hsm(call("H/G"), hsm_pb2.GetHsmRequest())
    assert (found.module, list(found.key_types), list(found.oaep_hashes)) == ("m", ["ec-p256"], ["sha1"])
    assert (found.exact_wrap, found.one_call_wrap, found.answering) == (False, True, failure is None)
    assert [(each.name, each.passed) for each in found.probes] == [("wrap", True)]
    assert door.asked == [guard.BROKER]


def test_hsm_asks_the_guard_first() -> None:
    token: Any = Token()
    door: Any = Door(allows=False)
    with pytest.raises(PermissionDenied):
        HsmMethods(token, door).get_hsm(call("H/G"), hsm_pb2.GetHsmRequest())


def test_a_symmetric_version_has_no_public_hash() -> None:
    _, rpc = keys(versions=Page(items=[replace(VERSION, public_key=None)], next=()))
    page = rpc.list_key_versions(call("K/L"), keys_pb2.ListKeyVersionsRequest(name="payments"))
    assert page.versions[0].public_key_sha256 == ""


def test_the_services_are_those_of_the_api_with_the_types_of_the_api() -> None:
    noun: Any = Noun()
    made = answers(
        keys=noun, use=noun, targets=noun, imports=noun, operators=noun, policies=noun, heads=noun, hsm=noun,
        guard=noun, schema="", page_key=bytes(32),
    )  # fmt: skip
    for path, method in table.methods(made).items():
        hints = get_type_hints(method.answer)
        request = next(hint for name, hint in hints.items() if name.lstrip("_") == "request")
        assert (request, hints["return"]) == (method.plan.kind, method.response), path
