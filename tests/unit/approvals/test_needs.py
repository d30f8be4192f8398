"""Four eyes: what makes a call need approvals, the policy and the configuration, and what becomes of it all."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import pytest
from broker_api.v1 import keys_pb2, targets_pb2
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import ValidationError

from broker.config import ApprovalsConfig
from broker.core.approvable import PRODUCTION
from broker.core.approval import Approval
from broker.core.call import on_behalf
from broker.core.holding import Holding
from broker.core.kinds import ApprovalState
from broker.core.model import Target, WrappingKey
from broker.core.policy import approvers
from broker.core.policy.cedar import FIRST_POLICY
from broker.core.policy.guard import Guard, of_unknown_key, under
from broker.core.ports import Offer
from tests.crash.kek_vault import Vault, WayToVault
from tests.fakes.calls import document, operator
from tests.fakes.shelf import kek
from tests.worlds.doorway import Doorway

KEY: dict[str, Any] = {"name": "payments", "type": keys_pb2.KEY_TYPE_EC_P256, "usage": keys_pb2.KEY_USAGE_SIGN}
ONE = {"CreateKey": 1}


EXPORTS = """
@id("careful") @approvals("1")
permit (principal in Group::"admins", action == Action::"CreateKey", resource) when { resource.exportable };
"""


def test_a_policy_asks_for_approvals_too() -> None:
    house = Doorway({}, policy=FIRST_POLICY + EXPORTS)
    house.done("alice", "CreateKey", **KEY)
    other = KEY | {"name": "other", "exportable": True}
    name = house.wanting("alice", "CreateKey", **other)
    told = house.done("alice", "ExplainPolicy", operator="alice", action="CreateKey", key="other")
    assert (told.allowed, told.approvals) == (True, 0)
    house.done("bob", "Approve", id=name)
    house.done("alice", "CreateKey", **other)


def test_AZ_17_a_permit_that_asks_for_approvals_is_not_left_out_without_one() -> None:
    house = Doorway({"widening-policy": 1}, policy=FIRST_POLICY + EXPORTS)
    assert house.refused("alice", "SetPolicy", text=FIRST_POLICY, expected_version=1) == "APPROVAL_REQUIRED"
    fewer = EXPORTS + FIRST_POLICY.replace("// Those who own a key", "//", 1)
    house.done("alice", "SetPolicy", text=fewer, expected_version=1)
    exporters = '@id("key-exporters")'
    less = fewer[: fewer.index(exporters)] + fewer[fewer.index(";", fewer.index(exporters)) + 1 :]
    house.done("alice", "SetPolicy", text=less, expected_version=2)
    assert house.refused("alice", "SetPolicy", text=fewer, expected_version=3) == "APPROVAL_REQUIRED"


def test_who_approves_what_is_for_the_policy() -> None:
    text = FIRST_POLICY.replace(', Action::"Approve", Action::"Reject"', "") + (
        '@id("team") permit (principal in Group::"approvers", action == Action::"Approve", resource)'
        ' when { resource.action == "CreateKey" && resource.about like "key/team-*" };'
    )
    house = Doorway({"CreateKey": 1}, policy=text)
    first, second = (house.wanting("alice", "CreateKey", **KEY | {"name": name}) for name in ("team-a", "other"))
    house.done("carol", "Approve", id=first)
    assert house.refused("carol", "Approve", id=second) == "POLICY_DENIED"
    told = house.done("alice", "ExplainPolicy", operator="carol", action="Approve", approval=second)
    assert not told.allowed


def test_what_the_background_does_for_somebody_needs_none() -> None:
    house = Doorway({"ImportKey": 1})
    call = on_behalf(house.own(), "ImportService/ImportKey", operator("alice", "admins"))
    house.guard.check(call, under("pay", of_unknown_key("pay")))
    assert call.decision == "allow"
    assert call.clearance is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('@id("a") @approvals("0")\npermit (principal, action, resource);', "a number from 1 to 5"),
        ('@id("a") @approvals("many")\npermit (principal, action, resource);', "a number from 1 to 5"),
        ('@id("a") @approvals("1")\nforbid (principal, action, resource);', "stands on a permit"),
        ('@id("a") @approvals("1")\npermit (principal, action == Action::"Sign", resource);', "Sign cannot wait"),
        (
            '@id("a") @approvals("1")\npermit (principal, action in [Action::"SealKey", Action::"Approve"], resource);',
            "Approve cannot wait",
        ),
    ],
)
def test_an_annotation_that_could_not_take_effect_is_refused(text: str, said: str) -> None:
    house = Doorway({})
    end = house.end("alice", "SetPolicy", text=FIRST_POLICY + text, expected_version=1)
    assert end.reason == "POLICY_INVALID"
    assert said in end.sentence


ALL = '\n@id("all") @approvals("{}")\npermit (principal in Group::"admins", action, resource);\n'


def test_a_policy_that_could_never_be_changed_again_is_refused() -> None:
    house = Doorway({})
    end = house.end("alice", "SetPolicy", text=FIRST_POLICY + ALL.format(3), expected_version=1)
    assert (end.outcome, end.reason) == ("FAILED_PRECONDITION", "APPROVERS_MISSING")
    house.done("alice", "SetPolicy", text=FIRST_POLICY + ALL.format(2), expected_version=1)
    assert house.refused("alice", "SetPolicy", text=FIRST_POLICY, expected_version=2) == "APPROVAL_REQUIRED"


def test_AZ_17_a_policy_that_widens_access_waits_and_one_that_narrows_it_does_not() -> None:
    house = Doorway({"widening-policy": 1})
    more = FIRST_POLICY + '\n@id("more")\npermit (principal, action == Action::"Sign", resource);\n'
    name = house.wanting("alice", "SetPolicy", text=more, expected_version=1)
    assert house.done("carol", "GetApproval", id=name).approval.details["text"] == more
    less = FIRST_POLICY.replace('@id("whoami")', '// nobody\n@id("whoami")') + (
        '\n@id("no-exports")\nforbid (principal, action == Action::"ExportKey", resource);\n'
    )
    house.done("alice", "SetPolicy", text=less, expected_version=1)
    assert house.refused("alice", "SetPolicy", text=FIRST_POLICY, expected_version=2) == "APPROVAL_REQUIRED"
    house.done("carol", "Approve", id=name)
    assert house.refused("alice", "SetPolicy", text=more, expected_version=1) == "CHANGED_MEANWHILE"


class Places:
    """Connects to places that offer the wrapping key of the moment."""

    def __init__(self) -> None:
        self.kek = kek()

    def __call__(self, _name: str, _kind: str, _settings: Any) -> Any:
        return SimpleNamespace(fresh=False, offer=lambda: Offer(key=self.kek))

    def canonical(self, _kind: str, settings: Any) -> Any:
        return dict(settings)


def test_an_approval_to_pin_a_target_is_for_the_wrapping_key_that_was_seen() -> None:
    places = Places()
    house = Doorway({"CreateTarget": 1}, connect=places)
    settings = targets_pb2.VaultSettings(address="https://vault.example:8200", mount="transit", token_file="t")
    asked: dict[str, Any] = {"name": "prod", "vault": settings}
    name = house.wanting("alice", "CreateTarget", **asked)
    details = house.done("carol", "GetApproval", id=name).approval.details
    assert details["vault.address"] == "https://vault.example:8200"
    assert details["found: kek_thumbprint"] == places.kek.thumbprint
    house.done("carol", "Approve", id=name)
    first, places.kek = places.kek, other_kek()
    assert house.wanting("alice", "CreateTarget", **asked) != name
    assert house.store.page(Target, limit=9) == []
    places.kek = first
    assert house.done("alice", "CreateTarget", **asked).target.kek_thumbprint == first.thumbprint


@pytest.mark.parametrize("request_id", ["", "5b1c7c9a-6a53-4f0e-9d8e-2f4d2a7c9b10"])
def test_no_wrapping_key_is_made_before_that_was_approved(request_id: str) -> None:
    vault = Vault()
    house = Doorway({"CreateTarget": 1}, connect=WayToVault(vault, lambda _: None))
    settings = targets_pb2.AzureKeyVaultSettings(vault_url="https://v.vault.azure.net", kek="mine")
    asked: dict[str, Any] = {"name": "prod", "azure_key_vault": settings, "create_kek": True, "request_id": request_id}
    name = house.wanting("alice", "CreateTarget", **asked)
    assert vault.keks == {}
    house.done("carol", "Approve", id=name)
    assert house.done("alice", "CreateTarget", **asked).target.kek_id == "mine/1"
    if request_id:
        assert house.done("alice", "CreateTarget", **asked).target.kek_id == "mine/1"


def other_kek() -> WrappingKey:
    made = rsa.generate_private_key(65537, 2048).public_key()
    spki = made.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return WrappingKey(id="other", public_key=spki, thumbprint=hashlib.sha256(spki).hexdigest())


RULE: dict[str, Any] = {
    "name": "deploy", "preset": 1, "issuer": "https://ci.example", "audience": "broker", "pipeline": "deploy",
    "matchers": [{"claim": "project_id", "exact": "42"}], "max_session": {"seconds": 900},
    "single_use": True,
}  # fmt: skip


def test_a_trust_rule_below_grade_a_waits_and_one_of_grade_a_does_not() -> None:
    house = Doorway({"widening-policy": 1, "weak-trust-rule": 1})
    made = house.done("alice", "CreateTrustRule", rule=RULE).rule
    assert made.grade == "A"
    weaker = RULE | {"single_use": False, "max_session": {"seconds": 86_400}, "revision": made.revision}
    name = house.wanting("alice", "UpdateTrustRule", rule=weaker)
    house.done("carol", "Approve", id=name)
    assert house.done("alice", "UpdateTrustRule", rule=weaker).rule.grade != "A"


def test_a_restore_ends_what_is_open() -> None:
    house = Doorway(ONE)
    name = house.wanting("alice", "CreateKey", **KEY)
    house.done("carol", "Approve", id=name)
    assert Holding(house.store, house.own).hold() == 0
    assert house.store.get(Approval, name).state is ApprovalState.EXPIRED
    assert house.wanting("alice", "CreateKey", **KEY) != name


def test_too_few_approvers_are_told_of() -> None:
    house = Doorway({"widening-policy": 1, "ExportKey": 2})
    assert approvers.lacking(house.store, house.guard) == ""
    house.done("bob", "RemoveOperator", name="carol")
    told = approvers.lacking(house.store, house.guard)
    assert told.startswith("ExportKey can need 2 approval(s) of others, and 2 operator(s) may approve it")
    assert approvers.lacking(house.store, Guard(document(), {"widening-policy": 1})) == ""
    house.done("alice", "RemoveOperator", name="bob")
    assert approvers.lacking(house.store, Guard(document(), {"widening-policy": 1})).startswith("SetPolicy")
    assert approvers.lacking(house.store, Guard(document(FIRST_POLICY + EXPORTS))).startswith("CreateKey")
    assert approvers.lacking(house.store, Guard(document())) == ""


def test_the_configuration_says_what_needs_how_many() -> None:
    assert ApprovalsConfig().counts == {}
    found = ApprovalsConfig(preset="production", needed={"ExportKey": 2, "AddOperator": 0, "SealKey": 1})
    assert {**found.counts, "AddOperator": 1} == {**PRODUCTION, "ExportKey": 2, "SealKey": 1}
    assert "AddOperator" not in found.counts
    wrongs: list[dict[str, Any]] = [
        {"needed": {"Approve": 1}},
        {"needed": {"Sign": 1}},
        {"needed": {"ExportKey": 6}},
        {"needed": {"ExportKey": -1}},
        {"lifetime_hours": 0},
        {"lifetime_hours": 169},
        {"waiting_in_all": 0},
        {"preset": "strict"},
    ]
    for wrong in wrongs:
        with pytest.raises(ValidationError):
            ApprovalsConfig(**wrong)
