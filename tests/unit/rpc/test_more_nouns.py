"""Decode, one call, encode: targets, imports, operators, policies, audit and HSM."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any, get_type_hints

import pytest
from broker_api.v1 import audit_pb2, drift_pb2, hsm_pb2, imports_pb2, keys_pb2, operators_pb2, policies_pb2, targets_pb2
from google.protobuf.duration_pb2 import Duration

from broker.core import kinds, model, report
from broker.core.call import Call
from broker.core.errors import BrokerError, InvalidRequest, PermissionDenied, Unavailable
from broker.core.imports.arrival import Extra
from broker.core.imports.handover import Exported
from broker.core.imports.ledger import Imported
from broker.core.imports.whereabouts import Whereabouts
from broker.core.operators.register import Issued
from broker.core.page import Page
from broker.core.policy import guard
from broker.core.policy.documents import Explanation
from broker.rpc import table
from broker.rpc.audit import AuditMethods
from broker.rpc.hsm import HsmMethods
from broker.rpc.imports import ImportMethods
from broker.rpc.nouns import answers
from broker.rpc.operators import OperatorMethods
from broker.rpc.policies import PolicyMethods
from broker.rpc.targets import TargetMethods
from tests.fakes.calls import call
from tests.unit.rpc.parts import KEY, PAGES, SPKI, THEN, VERSION, Noun, keys
from tests.worlds.world import World

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
    assert noun.asked == [("create", ("vault-eu", "vault", SETTINGS, "ab"), {"create_kek": False})]
    assert made.target.vault == vault
    assert rpc.get_target(call("T/G"), targets_pb2.GetTargetRequest(name="vault-eu")).target == made.target
    assert rpc.repin_target(call("T/R"), targets_pb2.RepinTargetRequest(name="vault-eu")).target == made.target
    listed = rpc.list_targets(call("T/L"), targets_pb2.ListTargetsRequest())
    assert (list(listed.targets), listed.next_page_token) == ([made.target], "")
    rpc.delete_target(call("T/D"), targets_pb2.DeleteTargetRequest(name="vault-eu"))
    assert noun.asked[-1] == ("delete", ("vault-eu",), {"copies_unknown": False})


def test_a_target_needs_settings_and_short_ones() -> None:
    noun: Any = Noun()
    rpc = TargetMethods(noun, PAGES)
    for settings in (None, targets_pb2.VaultSettings(ca_pem="x" * (512 * 1024 + 1))):
        with pytest.raises(InvalidRequest):
            rpc.create_target(call("T/C"), targets_pb2.CreateTargetRequest(name="a", vault=settings))
    assert noun.asked == []


def test_check_target() -> None:
    noun: Any = Noun(check=[report.Probe(name="kek", passed=False, detail="It changed.")])
    found = TargetMethods(noun, PAGES).check_target(call("T/C"), targets_pb2.CheckTargetRequest(name="a")).findings
    assert [(each.name, each.passed, each.detail) for each in found] == [("kek", False, "It changed.")]


IMPORT = model.Import(
    key="payments",
    version=1,
    target="vault-eu",
    remote_name="payments",
    remote_version="1",
    state=kinds.ImportState.PROVEN,
    kek_thumbprint="ab",
    blob_sha256="cd",
    failure="",
    started_at=THEN,
)


def test_imports() -> None:
    done = Imported(row=IMPORT, extra=(Extra(version="7", disabled=True),))
    page = Page(items=[IMPORT], next=("payments", 1, "vault-eu"))
    placed = Whereabouts(row=IMPORT, standing=kinds.Standing.BEHIND, drifts=(kinds.Drift.DISABLED,))
    noun: Any = Noun(import_key=done, prove=done, page=page, whereabouts=[placed])
    rpc = ImportMethods(noun, Noun(), PAGES)  # type: ignore[arg-type]
    made = rpc.import_key(call("I/I"), imports_pb2.ImportKeyRequest(name="payments", version=1, target="vault-eu"))
    wire = getattr(made, "import")
    assert (wire.key, wire.state, wire.HasField("prove_time")) == ("payments", imports_pb2.IMPORT_STATE_PROVEN, False)
    assert [(one.remote_version, one.disabled) for one in made.extra_versions] == [("7", True)]
    proven = rpc.prove_import(call("I/P"), imports_pb2.ProveImportRequest(name="payments", target="vault-eu"))
    assert getattr(proven, "import") == wire
    listed = rpc.list_imports(call("I/L"), imports_pb2.ListImportsRequest(target="vault-eu"))
    assert [(one.standing, list(one.drifts)) for one in listed.imports] == [
        (imports_pb2.COPY_STANDING_BEHIND, [drift_pb2.DRIFT_DISABLED])
    ]
    again = imports_pb2.ListImportsRequest(target="vault-eu", page_token=listed.next_page_token)
    rpc.list_imports(call("I/L"), again)
    assert noun.asked == [
        ("import_key", ("payments", 1, "vault-eu", "", model.Terms()), {}),
        ("prove", ("payments", 0, "vault-eu", ""), {}),
        ("page", ("", "vault-eu", (), 100), {}),
        ("whereabouts", (), {}),
        ("page", ("", "vault-eu", ("payments", 1, "vault-eu"), 100), {}),
        ("whereabouts", (), {}),
    ]
    with pytest.raises(InvalidRequest):
        rpc.list_imports(call("I/L"), imports_pb2.ListImportsRequest(page_token=listed.next_page_token))


def test_terms_reach_the_core_as_they_are_meant() -> None:
    noun: Any = Noun(confirm=Imported(row=IMPORT))
    rpc = ImportMethods(Noun(), noun, PAGES)  # type: ignore[arg-type]
    terms = imports_pb2.ImportTerms(operations=["sign"], tags={"team": "pay"}, enabled=False)
    terms.not_before.FromDatetime(THEN)
    rpc.confirm_import(call("I/C"), imports_pb2.ConfirmImportRequest(name="payments", target="azure", terms=terms))
    meant = model.Terms(operations=("sign",), tags={"team": "pay"}, enabled=False, not_before=THEN)
    assert noun.asked == [("confirm", ("payments", 0, "azure", "", meant), {})]
    too_many = imports_pb2.ImportTerms(operations=["sign"] * 17)
    with pytest.raises(InvalidRequest):
        rpc.confirm_import(call("I/C"), imports_pb2.ConfirmImportRequest(name="payments", terms=too_many))


def test_an_export_gives_the_file_and_its_hash() -> None:
    noun: Any = Noun(export=Exported(row=IMPORT, transfer_file=b"{}", blob_sha256="ef"))
    rpc = ImportMethods(Noun(), noun, PAGES)  # type: ignore[arg-type]
    asked = imports_pb2.ExportKeyRequest(name="payments", target="azure", remote_name="pay", kek_pem="PEM")
    made = rpc.export_key(call("I/E"), asked)
    assert (made.transfer_file, made.blob_sha256, getattr(made, "import").key) == (b"{}", "ef", "payments")
    assert noun.asked == [("export", ("payments", 0, "azure", "pay", b"PEM"), {})]


BOB = model.Operator(
    name="bob", groups=("admins",), state=kinds.OperatorState.ENABLED, not_before=THEN, created_at=THEN, revision=2
)


ISSUED = Issued(pem=b"PEM", ca_pem=b"CA", server_ca_pem=b"CAS", serial="ab", expires_at=THEN)


def test_operators() -> None:
    answers = {"set_groups": BOB, "revoke": BOB, "remove": BOB, "renew": ISSUED, "issue": ISSUED, "whoami": None}
    noun: Any = Noun(add=(BOB, ISSUED), page=Page(items=[BOB], next=()), **answers)
    rpc = OperatorMethods(noun, PAGES, lambda: ("", ""))
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
    trouble = ("an hour ahead", "another's too")
    me = OperatorMethods(noun, PAGES, lambda: trouble).who_am_i(call("O/W"), operators_pb2.WhoAmIRequest())
    assert (me.principal, list(me.groups), me.method, me.credential) == ("operator/alice", ["admins"], "mtls", "0a1b")
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
        OperatorMethods(noun, PAGES, lambda: ("", "")).add_operator(call("O/A"), request_)
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
    assert noun.asked == [("explain", ("alice", "Sign", kind, name, {}), {})]


def test_AN_36_not_the_broker_is_no_resource() -> None:
    with pytest.raises(InvalidRequest):
        PolicyMethods(Noun(), "").explain_policy(  # type: ignore[arg-type]  # a stand-in
            call("P/E"), policies_pb2.ExplainPolicyRequest(operator="alice", action="Sign", broker=False)
        )


HEAD = model.AuditHead(chain="c1", sequence=9, hash="ab", signed_at=THEN, signature=b"s")


def test_audit_heads() -> None:
    handover = {"former_key": "30", "successor_key": "31", "handover_time": "t"}
    noun: Any = Noun(state=(SPKI, [HEAD], [handover]), sign=[HEAD], page=Page(items=[HEAD], next=("c1", 9)))
    rpc = AuditMethods(noun, PAGES)
    state = rpc.get_audit_state(call("A/G"), audit_pb2.GetAuditStateRequest())
    assert state.public_key_pem.startswith("-----BEGIN PUBLIC KEY-----")
    assert [one.successor_key for one in state.handovers] == ["31"]
    assert (state.heads[0].chain, state.heads[0].sequence, state.heads[0].signature) == ("c1", 9, b"s")
    assert state.heads[0].sign_time_text == "2026-03-04T05:06:07.000000+00:00"
    assert list(rpc.sign_audit_head(call("A/S"), audit_pb2.SignAuditHeadRequest()).heads) == list(state.heads)
    page = rpc.list_audit_heads(call("A/L"), audit_pb2.ListAuditHeadsRequest(chain="c1", page_size=1))
    rpc.list_audit_heads(call("A/L"), audit_pb2.ListAuditHeadsRequest(chain="c1", page_token=page.next_page_token))
    assert noun.asked[2:] == [("page", ("c1", (), 1), {}), ("page", ("c1", ("c1", 9), 100), {})]
    with pytest.raises(InvalidRequest):
        rpc.list_audit_heads(call("A/L"), audit_pb2.ListAuditHeadsRequest(chain="c" * 129))


REPORT = report.HsmReport(
    module="m",
    library="l",
    token_label="t",
    token_serial="s",
    manufacturer="f",
    model="o",
    firmware="1",
    key_types=(kinds.KeyType.EC_P256,),
    oaep_hashes=(kinds.OaepHash.SHA1,),
    exact_wrap=False,
    one_call_wrap=True,
    probes=(report.Probe(name="wrap", passed=True, detail="d"),),
)


class Token:
    """An Hsm as far as this noun asks it."""

    def __init__(self, failure: BrokerError | None = None) -> None:
        self._failure = failure

    def report(self) -> report.HsmReport:
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
    _, rpc = keys(versions=(KEY, Page(items=[replace(VERSION, public_key=None)], next=())))
    page = rpc.list_key_versions(call("K/L"), keys_pb2.ListKeyVersionsRequest(name="payments"))
    assert page.versions[0].public_key_sha256 == ""


def test_the_services_are_those_of_the_api_with_the_types_of_the_api() -> None:
    noun: Any = Noun()
    made = answers(World(), hsm=noun, guard=noun, schema="", pages=PAGES, trouble=lambda: ("", ""))
    for path, method in table.methods(made).items():
        hints = get_type_hints(method.noun)
        request = next(hint for name, hint in hints.items() if name.lstrip("_") == "request")
        assert (request, hints["return"]) == (method.plan.kind, method.response), path
