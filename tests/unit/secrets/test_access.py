"""Who may do what with which secret, and what nobody learns who may not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.core.errors import InvalidRequest, NotFound, PermissionDenied
from broker.core.model import Secret, SecretVersion
from tests.fakes.calls import document, operator
from tests.fakes.hsm import SoftwareHsm
from tests.fakes.memory_store import MemoryStore
from tests.fakes.refusals import refused
from tests.fakes.secrets import FIELDS, PIPELINE, POLICY, TamperedHouse

BOB = operator("bob")
LABELLED = operator("carol", "label-a")


@pytest.fixture
def house() -> TamperedHouse:
    return TamperedHouse(MemoryStore(), SoftwareHsm())


def test_the_permission_comes_first_and_absent_looks_like_forbidden(house: TamperedHouse) -> None:
    house.put()
    said = []
    for name in ("team/app/db", "team/app/nothing"):
        for attempt in (
            lambda name=name: house.read(name, BOB),
            lambda name=name: house.read(f"{name}@9#none", BOB),
            lambda name=name: house.secrets.get(house.call("GetSecret", BOB), name),
            lambda name=name: house.secrets.versions(house.call("ListSecretVersions", BOB), name, (), 1),
            lambda name=name: house.secrets.destroy(house.call("DestroySecretVersions", BOB), name, [0]),
            lambda name=name: house.put(name, {}, expected=9, principal=BOB),
        ):
            with pytest.raises(PermissionDenied) as denied:
                attempt()
            said.append((denied.value.reason, denied.value.message, tuple(denied.value.metadata.items())))
    assert said[:6] == said[6:]
    refused(lambda: house.read("team/app/nothing"), NotFound, "SECRET_NOT_FOUND")
    refused(lambda: house.read("team/app/db@2"), NotFound, "SECRET_VERSION_NOT_FOUND")
    refused(lambda: house.read("team/app/db#none"), NotFound, "FIELD_NOT_FOUND")


def test_a_pipeline_reads_what_its_folder_holds_and_writes_nothing(house: TamperedHouse) -> None:
    house.put()
    house.put("team/apps/db")
    assert house.read(principal=PIPELINE).fields == FIELDS
    refused(lambda: house.read("team/apps/db", PIPELINE), PermissionDenied, "POLICY_DENIED")
    refused(lambda: house.put(principal=PIPELINE), PermissionDenied, "POLICY_DENIED")


def test_AZ_15_labels_that_change_before_the_write_are_decided_on_anew(house: TamperedHouse) -> None:
    house.put(labels={"team": "a"})
    seal = house.sealing.seal

    def relabelled(name: str, version: int, fields: dict[str, bytes]) -> tuple[int, bytes, bytes]:
        stored = house.store.get(Secret, name)
        assert stored is not None
        with house.store.write(house.own().outcome()) as write:
            write.replace(stored, replace(stored, labels={"team": "b"}))
        return seal(name, version, fields)

    # Put in its place: the labels have to change between the sealing and the write.
    house.sealing.seal = relabelled  # type: ignore[method-assign,assignment]
    refused(lambda: house.put(principal=LABELLED), PermissionDenied, "POLICY_DENIED")
    assert house.version("team/app/db", 1)
    assert house.store.get(SecretVersion, "team/app/db", 2) is None


def test_AZ_15_labels_that_change_before_a_destruction_are_decided_on_anew(house: TamperedHouse) -> None:
    house.put(labels={"team": "a"})
    stored = house.store.get(Secret, "team/app/db")
    assert stored is not None

    def relabelled() -> None:
        with house.store.write(house.own().outcome()) as write:
            write.replace(stored, replace(stored, labels={}))

    house.guard.then = relabelled
    with pytest.raises(PermissionDenied):
        house.secrets.destroy(house.call("DestroySecretVersions", LABELLED), "team/app/db", [1])
    assert house.version("team/app/db", 1).sealed


def test_AZ_15_nobody_labels_a_secret_into_or_out_of_what_he_may(house: TamperedHouse) -> None:
    house.put("x/mine", labels={"team": "a"}, principal=LABELLED)
    refused(lambda: house.put("x/mine", labels={"team": "b"}, principal=LABELLED), PermissionDenied, "POLICY_DENIED")
    house.put("x/theirs", labels={"team": "b"})
    refused(lambda: house.put("x/theirs", labels={"team": "a"}, principal=LABELLED), PermissionDenied, "POLICY_DENIED")
    refused(lambda: house.put("x/new", principal=LABELLED), PermissionDenied, "POLICY_DENIED")


def test_AZ_15_a_policy_that_changes_holds_for_the_very_next_read(house: TamperedHouse) -> None:
    house.put()
    house.read(principal=PIPELINE)
    house.guard.load(document(POLICY.replace("team/app", "team/else"), version=2))
    refused(lambda: house.read("team/app/db", PIPELINE), PermissionDenied, "POLICY_DENIED")


NAMES = (
    "a",
    "team",
    "team-x/db",
    "team/app",
    "team/app-x",
    "team/app/db",
    "team/app/db-2",
    "team/apps",
    "teams/a",
    "z",
)


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("prefix", "contains", "found"),
    [
        ("", "", NAMES),
        ("team", "", ("team", "team/app", "team/app-x", "team/app/db", "team/app/db-2", "team/apps")),
        ("team/app", "", ("team/app", "team/app/db", "team/app/db-2")),
        ("team/ap", "", ()),
        ("team/app", "db", ("team/app/db", "team/app/db-2")),
        ("", "app", ("team/app", "team/app-x", "team/app/db", "team/app/db-2", "team/apps")),
        ("", "db", ("team-x/db", "team/app/db", "team/app/db-2")),
        ("z", "", ("z",)),
    ],
)
def test_a_prefix_is_whole_segments_and_pages_lose_nothing(
    house: TamperedHouse, prefix: str, contains: str, found: tuple[str, ...], limit: int
) -> None:
    for name in NAMES:
        house.put(name)
    assert tuple(house.names(prefix, contains, limit)) == found


@pytest.mark.parametrize("text", ["%", "_", "'", "' OR 1=1 --", "\\", "*", "D", "[a-z]", '"', ";", "\0"])
def test_ST_06_what_is_looked_for_is_never_a_pattern_or_a_statement(house: TamperedHouse, text: str) -> None:
    for name in NAMES:
        house.put(name)
    assert house.names("", text) == []
    refused(lambda: house.names(text), InvalidRequest, "NAME_INVALID")
    refused(lambda: house.names("", text * 513), InvalidRequest, "FILTER_INVALID")


def test_AZ_04_nothing_that_may_not_be_got_shows_in_a_list(house: TamperedHouse) -> None:
    for number in range(40):
        house.put(f"x/n{number:02}", labels={"team": "a" if number % 3 == 0 else "b"})
    mine = [f"x/n{number:02}" for number in range(0, 40, 3)]
    for prefix, contains, limit in (("", "", 100), ("x", "", 2), ("x", "n", 1), ("", "/n", 5)):
        assert house.names(prefix, contains, limit, LABELLED) == mine
    assert house.names("x/n01", principal=LABELLED) == []
    refused(lambda: house.names(principal=BOB), PermissionDenied, "POLICY_DENIED")
    refused(lambda: house.names("x", principal=PIPELINE), PermissionDenied, "POLICY_DENIED")


def test_a_list_longer_than_what_is_looked_at_at_once_is_whole(
    house: TamperedHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Patched: a thousand are looked at at once, which nobody configures.
    monkeypatch.setattr("broker.core.secrets.lifecycle.SCANNED", 4)
    names = ["x", *(f"x/n{number:02}" for number in range(17))]
    for name in names:
        house.put(name)
    assert house.names("x", limit=3) == names
    assert house.names("", "n1", limit=3) == names[11:]
    assert house.names("x", "nothing") == []
