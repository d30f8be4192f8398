"""A credential is its targets' alone: by the name of its file, or by a line of the configuration."""

from __future__ import annotations

import pytest

from broker.config import TargetsConfig
from broker.core.errors import InvalidRequest
from broker.core.policy.guard import PLACE
from broker.targets import kinds
from broker.targets.binding import Credential, check_bound

HOST = "vault.example:8200"


def allowed(target: str, name: str, *, file: bool = True, bound: dict[str, tuple[str, ...]] | None = None) -> bool:
    try:
        check_bound(target, Credential(host=HOST, name=name, file=file), bound or {})
    except InvalidRequest as error:
        return error.reason != "TARGET_CREDENTIAL_NOT_BOUND" or name in error.message
    return True


@pytest.mark.parametrize(("target", "name", "expected"), [
    ("team-b", "team-b", True), ("team-b", "team-b.token", True), ("team-b", "team-b.pem.new", True),
    ("team-b", "team-a", False), ("team-b", "team", False), ("team", "team-b", False), ("team-b", "Team-b", False),
    ("team-b", "team-b-token", False),
])  # fmt: skip
def test_a_file_of_the_targets_name_is_the_targets(target: str, name: str, *, expected: bool) -> None:
    assert allowed(target, name) is expected


def test_what_is_no_file_belongs_to_no_target_by_its_name() -> None:
    assert not allowed("managed-identity", "managed-identity", file=False)


@pytest.mark.parametrize(("line", "target", "expected"), [
    (("prod",), "prod", True), (("prod",), "prod-2", False), (("team-b-*",), "team-b-prod", True),
    (("team-b-*",), "team-b", False), (("team-b-*",), "team-bc", False), (("*",), "anything", True),
    ((), "prod", False),
])  # fmt: skip
def test_a_line_of_the_configuration_names_targets(line: tuple[str, ...], target: str, *, expected: bool) -> None:
    bound = {f"{HOST}/shared": line, "other.example:8200/shared": ("*",)}
    assert allowed(target, "shared", bound=bound) is expected


@pytest.mark.parametrize(("place", "names"), [
    ("vault.example:8200/vault-token", ["prod", "team-b-*"]),
    ("x.managedhsm.azure.net:443/managed-identity:66666666-7777-8888-9999-000000000000", ["*"]),
])  # fmt: skip
def test_the_configuration_takes_such_lines(place: str, names: list[str]) -> None:
    read = TargetsConfig.model_validate({"credentials": "/credentials", "credentials_for": {place: names}})
    assert read.credentials_for == {place: tuple(names)}


@pytest.mark.parametrize(("place", "names"), [
    ("vault-token", ["prod"]), ("vault.example/vault-token", ["prod"]), ("vault.example:8200/../x", ["prod"]),
    ("https://vault.example:8200/x", ["prod"]), ("vault.example:8200/x", ["team-b*"]),
    ("vault.example:8200/x", ["*-b"]), ("vault.example:8200/x", ["Prod"]), ("vault.example:8200/x", [""]),
    ("vault.example:8200/x", "prod"),
])  # fmt: skip
def test_the_configuration_takes_no_others(place: str, names: object) -> None:
    with pytest.raises(ValueError, match="credentials_for"):
        TargetsConfig.model_validate({"credentials": "/credentials", "credentials_for": {place: names}})


UNDECIDED = {"ca_pem", "tenant_id"}
"""Settings that say how a place is reached, and not which it is."""


def test_each_setting_of_each_kind_is_known_to_the_policy() -> None:
    decided = {name for among in PLACE.values() for name in among}
    for kind in kinds().values():
        assert set(kind.settings.model_fields) <= decided | UNDECIDED
        assert set(kind.settings.model_fields) & set(PLACE["address"])
        assert set(kind.settings.model_fields) & set(PLACE["credential"])
