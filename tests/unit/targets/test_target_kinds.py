"""A kind of target is a folder and a choice on the wire: what both say of it is the same, and all that others need."""

from __future__ import annotations

from typing import Any

import pytest
from broker_api.v1 import targets_pb2 as wire
from broker_cli.target_kinds import place

from broker.core.policy.guard import PLACE
from broker.targets import kinds

MESSAGES: dict[str, Any] = {
    field.name.replace("_", "-"): field.message_type
    for field in wire.CreateTargetRequest.DESCRIPTOR.oneofs_by_name["settings"].fields
}


def test_every_folder_is_a_choice_when_targets_are_made_and_when_they_are_shown() -> None:
    shown = {field.name.replace("_", "-") for field in wire.Target.DESCRIPTOR.oneofs_by_name["settings"].fields}
    assert set(kinds()) == set(MESSAGES) == shown


@pytest.mark.parametrize("kind", sorted(MESSAGES))
def test_the_settings_are_the_same_on_the_wire_and_in_the_folder(kind: str) -> None:
    fields = MESSAGES[kind].fields
    assert {field.name for field in fields} == set(kinds()[kind].settings.model_fields)
    assert {field.type for field in fields} == {fields[0].TYPE_STRING}, "settings are kept and compared as text"


@pytest.mark.parametrize("kind", sorted(MESSAGES))
def test_the_wire_says_all_that_the_command_line_asks_with(kind: str) -> None:
    message = MESSAGES[kind]
    told = message.GetOptions().Extensions[wire.kind]
    assert told.about.startswith("Register ")
    assert told.about.endswith(" as NAME.")
    for field in message.fields:
        setting = field.GetOptions().Extensions[wire.setting]
        assert setting.help, f"{field.name} has no help"
        needed = kinds()[kind].settings.model_fields[field.name].is_required()
        given = setting.required or setting.default or setting.form == wire.SETTING_FORM_OWN_CREDENTIAL
        assert bool(given) is needed, f"{field.name}: the folder and the wire differ about leaving it out"


@pytest.mark.parametrize("kind", sorted(MESSAGES))
def test_policies_see_where_a_target_is_and_what_it_is_shown(kind: str) -> None:
    settings = set(kinds()[kind].settings.model_fields)
    for attribute in ("address", "credential"):
        assert settings & set(PLACE[attribute]), f"a policy cannot compare the {attribute}"


def _target(**settings: Any) -> wire.Target:
    return wire.Target(name="t", **settings)


def test_a_list_says_where_each_is() -> None:
    vault = wire.VaultSettings(address="https://v:8200", mount="a/b")
    assert place(_target(vault=vault)) == "https://v:8200/v1/a/b"
    azure = wire.AzureKeyVaultSettings(vault_url="https://pay.vault.azure.net")
    assert place(_target(azure_key_vault=azure)) == "https://pay.vault.azure.net"
    assert place(_target()) == ""  # of a kind that this command does not know
