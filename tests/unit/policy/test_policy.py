from __future__ import annotations

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.errors import InvalidRequest
from broker.core.policy import cedar as policy
from broker.core.policy.cedar import ACTIONS, FIRST_POLICY, SCHEMA, Decision, Entity, Policy, Question
from broker.rpc.table import declared
from tests.fakes.refusals import refused

ALICE = Entity("Operator", "alice", (("identity", "operator/alice"),), ("admins",))
ABSENT = Entity("Key", "k", (("type", ""), ("usage", ""), ("owner", ""), ("exportable", False), ("state", "absent")))
SIGN = Question(ALICE, "Sign", ABSENT)

ALLOW = '@id("all") permit (principal, action, resource);\n'


def fault_of(text: str) -> str:
    return refused(lambda: Policy(text), InvalidRequest, "POLICY_INVALID").message


def taken(text: str) -> str:
    """Nothing, or why the text was refused; either way a question was put to what was taken."""
    try:
        Policy(text).decide(SIGN)
    except InvalidRequest as refused:
        return refused.message
    return ""


def when(condition: str) -> str:
    return f'@id("p") permit (principal, action == Action::"Sign", resource) when {{ {condition} }};'


def test_the_actions_are_exactly_the_methods_of_the_api() -> None:
    methods = [method.name for service in declared().values() for method in service.methods]
    assert len(methods) == len(set(methods))
    assert set(methods) == ACTIONS
    assert len(methods) > 60


def test_the_first_policy_names_only_what_exists() -> None:
    Policy(FIRST_POLICY)
    assert set(re.findall(r'Action::"(\w+)"', FIRST_POLICY)) <= ACTIONS


def test_the_schema_is_shown_as_it_was_written() -> None:
    assert "appliesTo" in SCHEMA
    assert "//" in SCHEMA


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("permit (principal, action, resource)", "line 1: unexpected end of input"),
        (ALLOW + '\n@id("b")\npermit (principal,\n  action = Action::"Sign", resource);', "line 3: '='"),
        (ALLOW + "// about this;\n\npermit (principal, action, resource);", "line 4: the policy needs a name"),
        (ALLOW + '@id("Not a name") permit (principal, action, resource);', "line 2: the policy needs a name"),
        (ALLOW + '@id("") permit (principal, action, resource);', "line 2: the policy needs a name"),
        (ALLOW + ALLOW, 'line 2: another policy is already named "all"'),
        ('@id("x") permit (principal, action == Action::"Nope", resource);', 'unrecognized action `Action::"Nope"`'),
        ('@id("x") permit (principal is Robot, action, resource);', "Robot"),
        (ALLOW + when("resource.colour == 1"), "line 2: attribute `colour` on entity type `Key` not found"),
        (when('resource.getTag("team") == "a"'), "unable to guarantee safety of access to tag"),
        (when("resource.owner"), "unexpected type"),
        ('@id("x") permit (principal == ?principal, action, resource);', "template"),
        ('@id("x") permit (principal in Group::"\u0430dmins", action, resource);', "line 1: a character outside ASCII"),
        ("// \u202e\n" + ALLOW, "line 1: an invisible character"),
        (ALLOW + '"', "line 2: "),
        (ALLOW * 1001, "more than 1000 policies"),
        ("//" + "x" * 65536, "longer than 64 KiB"),
    ],
)
def test_what_is_wrong_with_a_text_is_said_with_its_line(text: str, fault: str) -> None:
    assert fault in fault_of(text)


def test_many_faults_make_one_message_of_bounded_length() -> None:
    text = "".join(f'@id("p{n}") permit (principal, action == Action::"No{n}", resource);\n' for n in range(200))
    message = fault_of(text)
    assert message.startswith("The policy was not taken: line 1: ")
    assert message.endswith(" more.")
    assert len(message) < 1200


def test_a_text_may_hold_a_thousand_policies_and_comments_in_any_language() -> None:
    text = "// кто что может\r\n" + "".join(f'@id("p{n}")permit(principal,action,resource);' for n in range(1000))
    assert len(Policy(text).decide(SIGN).policies) == 1000


def test_an_empty_text_is_a_policy_that_denies_everything() -> None:
    assert Policy("").decide(SIGN) == Decision(allowed=False)


NESTED = {
    "brackets": lambda depth: "(" * depth + "true" + ")" * depth,
    "sets": lambda depth: "[" * depth + "1" + "]" * depth + " == [1]",
    "records": lambda depth: "{a:" * depth + "1" + "}" * depth + " == {a: 1}",
    "sums": lambda depth: "1" + "+1" * depth + " == 2",
    "ands": lambda depth: "true" + "&&true" * depth,
    "ors": lambda depth: "false" + "||false" * depth,
    "attributes": lambda depth: "principal" + ".a" * depth,
    "indices": lambda depth: "principal" + '["a"]' * depth,
    "paths": lambda depth: "principal has a" + ".a" * depth,
    "calls": lambda depth: "[1].contains(" * depth + "1" + ")" * depth,
    "conditions": lambda depth: "if true then " * depth + "true" + " else false" * depth,
    "nots": lambda depth: "!(" * depth + "true" + ")" * depth,
    "behind a comment": lambda depth: '// "\r' + "(" * depth + "true" + ")" * depth,
    "behind a string": lambda depth: '"\\" //" == "a" && ' + "(" * depth + "true" + ")" * depth,
}


@pytest.mark.parametrize("shape", NESTED)
def test_no_nesting_reaches_the_engine_that_would_overflow_its_stack(shape: str) -> None:
    for depth in (101, 5000):
        text = when(NESTED[shape](depth))
        assert "more than 100 operators" in fault_of(text) or "64 KiB" in fault_of(text)


def test_the_engine_does_overflow_where_the_limit_is_not_kept() -> None:
    """If this fails, the engine has learnt to bound its stack, and the limit of operators can go."""
    text = when(NESTED["brackets"](20_000))
    program = "import resource as r, sys, cedarpy; r.setrlimit(r.RLIMIT_CORE, (0, 0)); "
    program += "cedarpy.PolicySet.from_str(sys.stdin.read())"
    ended = subprocess.run([sys.executable, "-c", program], input=text.encode(), capture_output=True, check=False)
    assert ended.returncode < 0


@pytest.mark.parametrize("shape", NESTED)
def test_what_the_limit_lets_through_the_engine_survives(shape: str) -> None:
    text = when(NESTED[shape](30))
    assert "operators" not in taken(text)


@given(st.text(alphabet=st.sampled_from('ab1 "\\/\n\r;(){}[]@:,.=&|!<?-')))
def test_any_text_is_either_a_policy_or_refused_as_one(text: str) -> None:
    assert taken(text) == "" or taken(text).startswith("The policy was not taken: ")


def test_AZ_09_a_forbid_that_cannot_be_evaluated_denies_and_is_named() -> None:
    broken = '@id("broken") forbid (principal, action, resource) when { 9223372036854775807 + 1 == 0 };'
    decision = Policy(ALLOW + broken).decide(SIGN)
    assert not decision.allowed
    assert decision.policies == ("broken",)
    assert "overflow" in decision.error


@pytest.mark.parametrize(
    "resource",
    [
        ABSENT._replace(attributes=ABSENT.attributes[1:]),
        ABSENT._replace(attributes=(("state", True), *ABSENT.attributes[:4])),
        ABSENT._replace(attributes=(*ABSENT.attributes, ("more", "x"))),
        ABSENT._replace(groups=("admins",)),
        Entity("Broker", "broker"),
        Entity("Nothing", "x"),
        Entity("", ""),
        Entity('Key::"x"', "x"),
    ],
)
def test_AZ_09_a_resource_that_does_not_fit_the_schema_is_denied(resource: Entity) -> None:
    decision = Policy(ALLOW).decide(SIGN._replace(resource=resource))
    assert not decision.allowed
    assert decision.error


@pytest.mark.parametrize("action", ["", "Nope", "sign", 'Sign"', 'Action::"Sign"'])
def test_AZ_09_an_action_that_does_not_exist_is_denied(action: str) -> None:
    decision = Policy(ALLOW).decide(SIGN._replace(action=action))
    assert not decision.allowed
    assert decision.error


HOSTILE = ('a"', "a\\", 'a\\"', 'k" || true || "', "a::b", 'Key::"k"', "a\nb", "", "a\0b", "*", "\uff4b", "k ", "K")


@pytest.mark.parametrize("name", HOSTILE)
def test_AZ_11_AZ_12_no_name_is_read_as_policy_text(name: str) -> None:
    only_k = Policy('@id("k") permit (principal == Operator::"alice", action, resource == Key::"k");')
    assert only_k.decide(SIGN).allowed
    assert not only_k.decide(SIGN._replace(resource=ABSENT._replace(id=name))).allowed
    assert not only_k.decide(SIGN._replace(principal=ALICE._replace(id=name))).allowed
    in_admins = Policy('@id("a") permit (principal in Group::"admins", action, resource);')
    assert in_admins.decide(SIGN).allowed
    assert not in_admins.decide(SIGN._replace(principal=ALICE._replace(groups=(name,)))).allowed


def test_a_forbid_wins_over_every_permit() -> None:
    text = ALLOW + '@id("not-here") forbid (principal, action == Action::"Sign", resource);'
    assert Policy(text).decide(SIGN) == Decision(allowed=False, policies=("not-here",))


def test_each_decision_names_its_own_policies() -> None:
    names = [f"p{number}" for number in range(25)]
    text = "".join(f'// one\n@id("{name}")\npermit (principal, action, resource == Key::"{name}");\n' for name in names)
    rules = Policy(text)
    for name in names:
        assert rules.decide(SIGN._replace(resource=ABSENT._replace(id=name))).policies == (name,)


def test_the_operators_of_a_full_list_of_actions_are_within_the_limit() -> None:
    actions = ", ".join(f'Action::"{action}"' for action in sorted(ACTIONS))
    Policy(f'@id("all") permit (principal in Group::"a", action in [{actions}], resource);')
    assert policy.MAX_OPERATORS == 100


@pytest.mark.parametrize("action", ["ListKeys", "ListTargets", "ListImports"])
def test_AZ_04_a_policy_that_would_hide_nothing_is_refused(action: str) -> None:
    """A list shows what its reader may get, so forbidding the list of one thing would have no effect."""
    kind = "Target" if action == "ListTargets" else "Key"
    with pytest.raises(InvalidRequest) as refused:
        Policy(f'@id("hide") forbid (principal, action == Action::"{action}", resource == {kind}::"a");')
    assert refused.value.reason == "POLICY_INVALID"
