"""Who may register a target gets no further with it than his own: not with another team's token, mount or names."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from broker.core.errors import InvalidRequest, PermissionDenied
from broker.core.kinds import ImportState, OperatorState
from broker.core.model import Key, Operator, Target
from broker.core.policy.guard import Guard
from broker.targets.vault.policy import policy
from tests.fakes.calls import call, document, operator
from tests.fakes.refusals import refused
from tests.live.imports.bench import Bench, Mount
from tests.servers.openbao import OpenBao
from tests.servers.softhsm import KeysHsm

TEAM_B = """
@id("admins") permit (principal in Group::"admins", action, resource);
@id("b-targets") permit (
  principal in Group::"team-b",
  action in [Action::"CreateTarget", Action::"GetTarget", Action::"RepinTarget"], resource
) when {{
  resource.name like "team-b-*" && resource.address == "{address}" && resource.mount == "{mount}" &&
  resource.namespace == "" && resource.credential like "team-b-*"
}};
@id("b-keys") permit (principal in Group::"team-b", action == Action::"ImportKey", resource is Key)
when {{ context.remote_name like "team-b-*" }};
@id("b-imports") permit (principal in Group::"team-b", action == Action::"ImportKey", resource is Target)
when {{ resource.name like "team-b-*" && context.remote_name like "team-b-*" }};
"""


class House(Bench):
    """Team A's target ``bao`` at its mount, and team B with a mount and a token of its own at the same server."""

    def __init__(self, server: OpenBao, theirs: str, hsm: KeysHsm, folder: Path) -> None:
        super().__init__(Mount(server, folder, server.mount), hsm, folder)
        self.register()
        self.theirs = theirs
        token = server.token_for(policy(self.theirs), self.theirs)
        server.write_token(self.mount.credentials, "team-b-prod.token", token)
        self.restart(guard=Guard(document(TEAM_B.format(address=server.address, mount=self.theirs))))

    def create(self, name: str = "team-b-prod", **changed: str) -> Target:
        own = {"mount": self.theirs, "token_file": "team-b-prod.token"}
        given = {**self.settings, **own, **changed}
        return self.targets.create(self.call("CreateTarget", "team-b"), name, "vault", given, "")

    def bring(self, key: Key, target: str, remote_name: str = "") -> ImportState:
        asked = self.call("ImportKey", "team-b")
        return self.imports.import_key(asked, key.name, 0, target, remote_name).row.state


@pytest.fixture(scope="module")
def theirs(openbao: OpenBao) -> str:
    """Team B's mount; each costs the server an RSA-4096 key."""
    name = f"team-b-{secrets.token_hex(4)}"
    openbao.make_mount(name)
    return name


@pytest.fixture
def house(openbao: OpenBao, theirs: str, hsm: KeysHsm, tmp_path: Path) -> Iterator[House]:
    made = House(openbao, theirs, hsm, tmp_path)
    yield made
    made.close()


def test_AZ_06_a_team_registers_and_imports_what_is_its_own(house: House) -> None:
    key = house.key()
    house.create()
    assert house.bring(key, "team-b-prod", f"team-b-{key.name}") is ImportState.PROVEN


@pytest.mark.parametrize("changed", [
    {"mount": "transit"}, {"mount": "team-b"}, {"namespace": "team-b"}, {"address": "https://127.0.0.1:1"},
    {"token_file": "bao"},
])  # fmt: skip
def test_AZ_06_another_place_or_credential_is_denied_before_anything_is_asked(
    house: House, changed: dict[str, str]
) -> None:
    refused(lambda: house.create(**changed), PermissionDenied, "POLICY_DENIED")
    refused(lambda: house.create(name="prod"), PermissionDenied, "POLICY_DENIED")


def test_AZ_06_another_teams_token_is_refused_in_the_same_words_as_one_that_is_not_there(house: House) -> None:
    house.guard.load(document(version=2))  # whatever the policy lets through
    sentences = {
        refused(
            partial(
                house.targets.create,
                house.call("CreateTarget"),
                "team-b-prod",
                "vault",
                {**house.settings, "token_file": file},
                "",
            ),
            InvalidRequest,
            "TARGET_CREDENTIAL_NOT_BOUND",
        ).message
        for file in (house.mount.token_file, "absent")
    }
    assert len(sentences) == 1
    assert house.store.get(Target, "team-b-prod") is None


def test_AZ_06_a_key_goes_under_no_other_name_and_to_no_other_target(house: House) -> None:
    key = house.key()
    house.create()
    for target, name in (("team-b-prod", ""), ("team-b-prod", "team-a-key"), ("bao", f"team-b-{key.name}")):
        refused(partial(house.bring, key, target, name), PermissionDenied, "POLICY_DENIED")
    assert not house.arrived(key)


def test_AZ_06_the_name_that_a_key_has_there_decides_when_none_is_given(house: House) -> None:
    key = house.key()
    house.create()
    house.bring(key, "team-b-prod", f"team-b-{key.name}")
    house.rotate(key)
    assert house.bring(key, "team-b-prod") is ImportState.PROVEN


def test_a_question_about_a_target_that_is_to_be_is_answered_as_the_call_would_be(house: House) -> None:
    policies = house.policies
    mine = {"address": house.settings["address"], "mount": house.theirs, "credential": "team-b-prod.token"}
    with house.store.write(house.call("AddOperator").outcome()) as write:
        write.add(
            Operator(
                name="bob",
                groups=("team-b",),
                state=OperatorState.ENABLED,
                not_before=house.clock(),
                created_at=house.clock(),
            )
        )

    def may(action: str, kind: str, thing: str, **asking: str) -> bool:
        asked = call("PolicyService/ExplainPolicy", operator("alice", "admins"), house.clock)
        return policies.explain(asked, "bob", action, kind, thing, asking).allowed

    assert may("CreateTarget", "Target", "team-b-prod", **mine)
    assert not may("CreateTarget", "Target", "team-b-prod", **mine | {"mount": "transit"})
    assert not may("CreateTarget", "Target", "team-b-prod")
    assert may("ImportKey", "Key", "payments", remote_name="team-b-payments")
    assert not may("ImportKey", "Key", "payments")
    for kind, name in (("Target", "team-b-prod"), ("Key", "payments")):
        refused(partial(may, "ImportKey", kind, name, colour="x"), InvalidRequest, "ATTRIBUTE_UNKNOWN")
    refused(lambda: may("GetTarget", "Target", "x", name="team-b-prod"), InvalidRequest, "ATTRIBUTE_UNKNOWN")
