from __future__ import annotations

import random
import threading
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.errors import InvalidRequest, PermissionDenied
from broker.core.kinds import KeyState, KeyType, KeyUsage, OperatorState
from broker.core.model import Key, Operator, Principal, Secret, Target
from broker.core.names import check_name
from broker.core.policy.cedar import ACTIONS
from broker.core.policy.guard import (
    BROKER,
    Guard,
    Resource,
    of_approval,
    of_key,
    of_operator,
    of_pipeline,
    of_secret,
    of_target,
    of_trust_rule,
    of_unknown_key,
    of_unknown_target,
    under,
)
from tests.fakes.calls import Clock, call, document, operator
from tests.fakes.memory_store import MemoryStore

NOW = datetime(2026, 5, 4, tzinfo=UTC)
KEY = Key(
    name="payments", type=KeyType.EC_P256, usage=KeyUsage.SIGN, exportable=True, labels={"team": "a"},
    owner="operator/alice", state=KeyState.ENABLED, primary=1, latest=1, created_at=NOW,
)  # fmt: skip
TARGET = Target(name="vault", kind="vault", settings={}, kek_id="k", kek_thumbprint="0", created_at=NOW)
OPERATOR = Operator(name="bob", groups=("team-a",), state=OperatorState.ENABLED, not_before=NOW, created_at=NOW)
SECRET = Secret(name="team/app/db", labels={"team": "a"}, latest=1, created_at=NOW, updated_at=NOW)
PIPELINE = Principal(kind="pipeline", name="deploy", method="oidc")

RESOURCES = (
    of_key(KEY),
    of_unknown_key("nothing"),
    of_target(TARGET),
    of_unknown_target("nowhere"),
    of_operator("bob", OPERATOR),
    of_operator("bob", OPERATOR, asked=("team-b",)),
    of_operator("nobody", None),
    of_pipeline("deploy"),
    of_secret("team/app/db", SECRET),
    of_secret("nothing", None),
    of_trust_rule("nothing", None),
    of_approval("0" * 12, None),
    BROKER,
    *(under("payments", thing) for thing in (of_key(KEY), of_target(TARGET))),
)
"""One of each kind that the core asks about."""


def guard(text: str) -> Guard:
    return Guard(document(text))


def permit(scope: str, condition: str = "true", name: str = "p") -> str:
    return f'@id("{name}") permit ({scope}) when {{ {condition} }};\n'


def test_AZ_05_each_grant_passes_its_own_action_only() -> None:
    """All grants at once, each under the name of its action: whatever is allowed, its own grant alone allowed it."""
    names = {granted: f"g{number}" for number, granted in enumerate(sorted(ACTIONS))}
    rules = guard(
        "".join(
            permit(f'principal, action == Action::"{granted}", resource', name=name) for granted, name in names.items()
        )
    )
    passed = set()
    for action in ACTIONS:
        for resource in RESOURCES:
            for who in (operator(), PIPELINE):
                decision = rules.decide(who, action, resource)
                assert not decision.allowed or decision.policies == (names[action],)
                passed |= {action} if decision.allowed else set()
    assert passed == ACTIONS


def test_nothing_is_permitted_that_no_policy_permits() -> None:
    rules, alice = guard(""), operator("alice", "admins")
    assert not any(rules.permits(alice, action, resource) for action in ACTIONS for resource in RESOURCES)


READS = {
    "ListKeyMoves", "GetOperation", "WaitOperation", "ListOperations", "GetKey", "ListKeys", "ListKeyVersions",
    "GetPublicKey", "GetTarget", "ListTargets", "ListImports", "ListOperators", "GetPolicy", "ExplainPolicy",
    "GetAuditState", "SignAuditHead", "ListAuditHeads", "GetHsm", "ListAuthorities", "WhoAmI", "GetSecret",
    "ListSecrets", "ListSecretVersions", "GetRootKey", "ListSessions", "ListLeases", "GetTrustRule", "ListTrustRules",
    "TestTrustRule", "GetApproval", "ListApprovals", "ListDrift",
}  # fmt: skip
SECRETS = {
    "PutSecret", "PatchSecret", "SetSecretMaxAge", "GetSecret", "ListSecrets", "ListSecretVersions",
    "DeleteSecretVersions", "UndeleteSecretVersions", "WhoAmI", "ListApprovals",
}  # fmt: skip
JOB = {"Login", "RenewSession", "EndSession"}
WORK = {
    "ListKeyMoves", "PrepareKeyVersion", "ActivateKeyVersion", "RetireKeyVersion", "GetOperation", "WaitOperation",
    "ListOperations", "RetryOperation", "CreateKey", "GetKey", "ListKeys", "ListKeyVersions", "GetPublicKey", "Verify",
    "RotateKey", "SetKeySchedule", "GetTarget", "ListTargets", "CheckTarget", "ImportKey", "ProveImport",
    "ConfirmImport", "ListImports", "GetHsm", "WhoAmI", "CheckDrift", "ListDrift",
}  # fmt: skip


@pytest.mark.parametrize(
    ("groups", "may"),
    [
        (("admins",), set(ACTIONS) - JOB),
        (("auditors",), READS),
        (("key-operators",), WORK | {"ListApprovals"}),
        (("key-exporters",), {"ExportKey", "WhoAmI", "ListApprovals"}),
        (("approvers",), {"ListApprovals", "GetApproval", "Approve", "Reject", "WhoAmI"}),
        (("secret-operators",), SECRETS),
        ((), {"WhoAmI", "ListApprovals"}),
    ],
)
def test_the_first_policy_gives_each_group_what_its_name_says(groups: tuple[str, ...], may: set[str]) -> None:
    rules = Guard(document())
    carol = operator("carol", *groups)
    assert {action for action in ACTIONS for resource in RESOURCES if rules.permits(carol, action, resource)} == may


def test_the_first_policy_gives_a_pipeline_its_session_and_no_secret() -> None:
    rules = Guard(document())
    may = {action for action in ACTIONS for resource in RESOURCES if rules.permits(PIPELINE, action, resource)}
    assert may == JOB | {"WhoAmI"}
    namesake = Principal(kind="pipeline", name="deploy", groups=("admins", "secret-operators"))
    assert not rules.permits(namesake, "FetchSecrets", of_secret("team/app/db", SECRET))


@pytest.mark.parametrize("near", ["team/app-x/db", "team/ap/db", "teams/app/db", "app/team/db", "team", "team/app"])
def test_AZ_03_a_grant_on_a_folder_is_for_whole_segments(near: str) -> None:
    rules = guard(permit('principal, action == Action::"FetchSecrets", resource in Folder::"team/app"'))
    assert rules.permits(PIPELINE, "FetchSecrets", of_secret("team/app/db", SECRET))
    assert rules.permits(PIPELINE, "FetchSecrets", of_secret("team/app/deep/er", None))
    assert not rules.permits(PIPELINE, "FetchSecrets", of_secret(near, None))


def test_the_first_policy_lets_everybody_renew_and_ask_for_themselves_only() -> None:
    rules = Guard(document())
    for action in ("RenewCertificate", "ExplainPolicy"):
        assert rules.permits(operator("bob"), action, of_operator("bob", OPERATOR))
        assert not rules.permits(operator("bobby"), action, of_operator("bob", OPERATOR))


def test_the_first_policy_lets_owners_use_their_keys() -> None:
    rules = Guard(document())
    assert rules.permits(operator("alice"), "Sign", of_key(KEY))
    assert not rules.permits(operator("alic"), "Sign", of_key(KEY))
    assert not rules.permits(operator("alice"), "RotateKey", of_key(KEY))


names = st.one_of(
    st.text(max_size=70),
    st.from_regex(r"[a-z](-?[a-z0-9]){0,62}", fullmatch=True),
    st.text(alphabet="a-.A/\\%\0\u0660é\u0301\uff41\u200b\u202e ", min_size=1, max_size=8),
)


@given(names, names)
def test_AZ_01_policy_and_storage_see_the_same_name(name: str, other: str) -> None:
    try:
        checked = check_name(name, "key")
    except InvalidRequest:
        assert not (name.isascii() and name.islower() and name.isalnum() and name[0].isalpha() and len(name) < 64)
        return
    assert checked.encode() == name.encode()
    store, clock = MemoryStore(), Clock()
    with store.write(call("KeyService/CreateKey", operator(), clock).outcome()) as write:
        write.add(replace(KEY, name=checked))
    rules = guard(permit(f'principal, action, resource == Key::"{checked}"'))
    for asked in {name, other, name + "a", name[:-1], name.upper()}:
        stored = None if "\0" in asked else store.get(Key, asked)  # what no database can hold, the store refuses
        resource = of_key(stored) if stored else of_unknown_key(asked)
        assert rules.permits(operator(), "Sign", resource) == (stored is not None) == (asked == name)


@pytest.mark.parametrize(
    "name",
    [
        "a/", "a//b", "a/../b", "%61", "%2561", "a\\b", "A", "a\0", "e\u0301", "é", "\uff41", "a\u200bb", "\u202ea",
        "a\n", "", "-a", "a-", "a--b", "1a", "a.b", "a b", " a", "a" * 64, "a" * 10_000, "\u017f", "\u212a",
    ],
)  # fmt: skip
def test_AZ_01_every_other_spelling_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_name(name, "key")
    assert refused.value.reason == "NAME_INVALID"


@pytest.mark.parametrize("near", ["team-abc", "team", "team-", "team-a-b", "Team-a", "team-a*", "team-a,team-b", "*"])
def test_AZ_03_a_grant_on_one_name_is_not_one_on_its_neighbours(near: str) -> None:
    by_group = guard(permit('principal in Group::"team-a", action, resource'))
    assert by_group.permits(operator("x", "team-a"), "Sign", of_key(KEY))
    assert not by_group.permits(operator("x", near), "Sign", of_key(KEY))
    by_key = guard(permit('principal, action, resource == Key::"team-a"'))
    assert by_key.permits(operator(), "Sign", of_unknown_key("team-a"))
    assert not by_key.permits(operator(), "Sign", of_unknown_key(near))
    by_label = guard(permit("principal, action, resource is Key", 'resource has "x" || resource.owner == "x"'))
    assert not by_label.permits(operator(), "Sign", of_key(KEY))


@pytest.mark.parametrize("name", ["Root", " root ", "ROOT", "root ", "rOOT", "Admins", "\uff41dmins"])
def test_AZ_13_a_reserved_name_in_other_letters_cannot_exist(name: str) -> None:
    with pytest.raises(InvalidRequest):
        check_name(name, "operator")


def test_AN_30_another_kind_of_principal_of_the_same_name_is_denied() -> None:
    rules = guard(permit("principal, action, resource"))
    assert rules.permits(Principal(kind="operator", name="alice"), "Sign", of_key(KEY))
    for kind in ("pipeline", "", "Operator ", "group", "broker"):
        assert not rules.permits(Principal(kind=kind, name="alice"), "Sign", of_key(KEY))


CHANGES: list[Resource] = [
    of_key(replace(KEY, state=KeyState.DISABLED)),
    of_key(replace(KEY, owner="operator/bob")),
    of_key(replace(KEY, exportable=False)),
    of_key(replace(KEY, type=KeyType.EC_P384)),
    of_key(replace(KEY, labels={"team": "b"})),
    of_key(replace(KEY, labels={})),
    of_unknown_key("payments"),
]


@pytest.mark.parametrize("changed", CHANGES)
def test_AZ_14_a_changed_key_is_decided_on_anew(changed: Resource) -> None:
    rules = guard(
        permit(
            "principal, action, resource is Key",
            'resource.state == "enabled" && resource.owner == "operator/alice" && resource.exportable && '
            'resource.type == "ec-p256" && resource.hasTag("team") && resource.getTag("team") == "a"',
        )
    )
    for _ in range(2):
        assert rules.permits(operator(), "Sign", of_key(KEY))
        assert not rules.permits(operator(), "Sign", changed)


def test_AZ_14_changed_groups_are_decided_on_anew() -> None:
    rules = guard(permit('principal in Group::"a", action, resource'))
    assert rules.permits(operator("x", "a"), "Sign", of_key(KEY))
    assert not rules.permits(operator("x"), "Sign", of_key(KEY))
    assert rules.permits(operator("x", "b", "a"), "Sign", of_key(KEY))


def test_AZ_14_a_new_policy_holds_for_the_very_next_decision() -> None:
    rules = guard(permit("principal, action, resource"))
    assert rules.permits(operator(), "Sign", of_key(KEY))
    rules.load(document("", version=2))
    assert not rules.permits(operator(), "Sign", of_key(KEY))


def test_a_policy_that_is_refused_leaves_the_old_one_in_force() -> None:
    rules = guard(permit("principal, action, resource"))
    with pytest.raises(InvalidRequest):
        rules.load(document("permit", version=2))
    assert rules.document.version == 1
    assert rules.permits(operator(), "Sign", of_key(KEY))


def test_an_older_policy_never_replaces_a_newer_one() -> None:
    rules = guard("")
    rules.load(document("", version=3))
    rules.load(document(permit("principal, action, resource"), version=2))
    assert rules.document.version == 3
    assert not rules.permits(operator(), "Sign", of_key(KEY))


def test_P7_threads_that_decide_while_policies_change_never_mix_two() -> None:
    """Odd versions permit, even ones deny: each call must carry the decision of the version that it names."""
    rules = guard(permit("principal, action, resource"))
    done, wrong = threading.Event(), []

    def decide() -> None:
        while not done.is_set():
            asked = call("KeyService/Sign", operator(), Clock())
            with suppress(PermissionDenied):
                rules.check(asked, of_key(KEY))
            if (asked.decision == "allow") != (asked.policy_version % 2 == 1):
                wrong.append(asked)

    threads = [threading.Thread(target=decide) for _ in range(4)]
    for thread in threads:
        thread.start()
    for version in range(2, 60):
        rules.load(document(permit("principal, action, resource") if version % 2 else "", version))
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_allowed_call_carries_who_decided_and_by_which_version() -> None:
    asked = call("KeyService/Sign", operator(), Clock())
    Guard(document(permit("principal, action, resource", name="all"), version=7)).check(asked, of_key(KEY))
    assert (asked.resource, asked.decision, asked.policies, asked.policy_version) == (
        "key/payments", "allow", ("all",), 7,
    )  # fmt: skip


def test_a_denial_says_what_and_how_to_find_out_but_not_which_policy() -> None:
    asked = call("KeyService/Sign", operator(), Clock())
    text = permit("principal, action, resource") + '@id("secret-rule") forbid (principal, action, resource);'
    with pytest.raises(PermissionDenied) as denied:
        guard(text).check(asked, of_key(KEY))
    assert denied.value.reason == "POLICY_DENIED"
    assert "Sign on this key" in denied.value.message
    assert "broker policy explain" in denied.value.message
    assert "secret-rule" not in denied.value.message + str(denied.value.metadata)
    assert "payments" not in denied.value.message + str(denied.value.metadata)
    assert (asked.decision, asked.policies) == ("deny", ("secret-rule",))


def test_a_key_that_is_not_there_is_denied_with_the_same_words_as_one_that_is() -> None:
    said = []
    for resource in (of_key(KEY), of_unknown_key("payments")):
        with pytest.raises(PermissionDenied) as denied:
            guard("").check(call("KeyService/Sign", operator(), Clock()), resource)
        said.append((denied.value.reason, denied.value.message, denied.value.metadata))
    assert said[0] == said[1]


def test_AZ_09_an_evaluation_error_denies_under_a_reason_of_its_own() -> None:
    broken = '@id("broken") forbid (principal, action, resource) when { 9223372036854775807 + 1 == 0 };'
    asked = call("KeyService/Sign", operator(), Clock())
    with pytest.raises(PermissionDenied) as denied:
        guard(permit("principal, action, resource") + broken).check(asked, of_key(KEY))
    assert denied.value.reason == "POLICY_ERROR"
    assert (asked.decision, asked.policies) == ("deny", ("broken",))
    assert "broken" not in denied.value.message


@pytest.mark.parametrize("permitted", [("payments", "vault"), ("payments", "x"), ("x", "vault")])
def test_a_call_about_two_things_needs_both(permitted: tuple[str, str]) -> None:
    key, target = permitted
    text = permit(f'principal, action, resource == Key::"{key}"', name="for-key")
    rules = guard(text + permit(f'principal, action, resource == Target::"{target}"', name="for-target"))
    asked = call("ImportService/ImportKey", operator(), Clock())
    for thing in (of_key(KEY), of_target(TARGET)):
        with suppress(PermissionDenied):
            rules.check(asked, under("payments", thing))
    assert asked.resource == "key/payments,target/vault"
    assert asked.decision == ("deny" if "x" in permitted else "allow")
    assert asked.policies == tuple(name for name, of in (("for-key", key), ("for-target", target)) if of != "x")


def test_AZ_17_who_may_set_groups_but_not_admins_cannot_make_themselves_one() -> None:
    text = permit('principal in Group::"staff", action == Action::"SetOperatorGroups", resource') + (
        '@id("no-new-admins") forbid (principal, action in [Action::"AddOperator", Action::"SetOperatorGroups"], '
        'resource) when { context.groups.contains("admins") } unless { principal in Group::"admins" };'
    )
    eve = Operator(name="eve", groups=("staff",), state=OperatorState.ENABLED, not_before=NOW, created_at=NOW)
    for name, record in (("eve", eve), ("bob", OPERATOR)):
        allowed = of_operator(name, record, asked=("readers",))
        refused = of_operator(name, record, asked=("admins", "readers"))
        assert guard(text).permits(operator("eve", "staff"), "SetOperatorGroups", allowed)
        assert not guard(text).permits(operator("eve", "staff"), "SetOperatorGroups", refused)
        assert guard(text).permits(operator("eve", "admins", "staff"), "SetOperatorGroups", refused)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_P7_policy_and_storage_agree_on_a_million_names() -> None:
    source = random.Random(7)  # noqa: S311 - names to try, not secrets
    for _ in range(2500):
        tried = [
            "".join(
                source.choices("ab0-", k=source.randint(1, 6)) + source.choices(["", *'-A/. \\"\0\uff41\u200b'], k=1)
            )
            for _ in range(400)
        ]
        stored = {name for name in tried if accepted(name)}
        known = ", ".join(f'Key::"{name}"' for name in sorted(stored))
        rules = guard(permit("principal, action, resource is Key", f"[{known}].contains(resource)"))
        assert all(rules.permits(operator(), "Sign", of_unknown_key(name)) == (name in stored) for name in tried)


def accepted(name: str) -> bool:
    try:
        return check_name(name, "key").encode() == name.encode()
    except InvalidRequest:
        return False
