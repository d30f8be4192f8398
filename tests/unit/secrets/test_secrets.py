"""Static secrets as their noun: who may, which version, what is left of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest

from broker.core.errors import (
    AlreadyExists,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    Unavailable,
    WrongState,
)
from broker.core.kinds import SecretVersionState
from broker.core.model import Receipt, Secret, SecretRead, SecretVersion
from broker.core.secrets.lifecycle import parse_reference
from tests.fakes.calls import operator
from tests.fakes.hsm import SoftwareHsm
from tests.fakes.memory_store import MemoryStore
from tests.fakes.refusals import refused
from tests.fakes.secrets import FIELDS, TamperedHouse

REQUEST = "0b7e8f3e-1f5f-4c7e-9d59-0f6a4b3a2c1d"


@pytest.fixture
def house() -> TamperedHouse:
    return TamperedHouse(MemoryStore(), SoftwareHsm())


def test_what_was_put_is_read_and_each_put_is_a_version(house: TamperedHouse) -> None:
    first = house.put(labels={"team": "a"})
    assert (first.latest, first.labels, first.expires_at) == (1, {"team": "a"}, None)
    house.clock.forward(seconds=5)
    second = house.put(fields={"token": b"\0\xff"})
    assert (second.latest, second.created_at, second.updated_at) == (2, first.created_at, house.clock())
    assert second.labels == {"team": "a"}  # a put that says nothing of labels takes none away
    assert house.read().fields == {"token": b"\0\xff"}
    assert house.read("team/app/db@1").fields == FIELDS
    assert house.read("team/app/db@1#user").fields == {"user": b"app"}
    assert (house.read().version, house.read().reference.text) == (2, "team/app/db")


def test_the_versions_are_listed_with_their_fields_and_authors(house: TamperedHouse) -> None:
    house.put()
    house.put(fields={"z": b"", "a": b""})
    page = house.secrets.versions(house.call("ListSecretVersions"), "team/app/db", (), 1)
    assert [(one.number, one.fields, one.author) for one in page.items] == [(1, ("password", "user"), "operator/alice")]
    page = house.secrets.versions(house.call("ListSecretVersions"), "team/app/db", page.next, 10)
    assert ([(one.number, one.fields) for one in page.items], page.next) == ([(2, ("a", "z"))], ())


def test_a_put_costs_one_write_one_hsm_call_and_a_kept_read_none(house: TamperedHouse) -> None:
    house.put()
    entries, asked = len(house.store.entries), house.hsm.calls.total()
    house.put()
    assert (len(house.store.entries) - entries, house.hsm.calls.total() - asked) == (1, 1)
    house.read()
    asked = house.hsm.calls.total()
    house.read()
    assert (len(house.store.entries) - entries, house.hsm.calls.total() - asked) == (1, 0)


@pytest.mark.parametrize(("there", "expected"), [(0, 1), (0, 7), (2, 0), (2, 1), (2, 3)])
def test_a_put_for_another_version_than_the_latest_is_refused(house: TamperedHouse, there: int, expected: int) -> None:
    for _ in range(there):
        house.put()
    before = house.store.rows
    refused(lambda: house.put(expected=expected), WrongState, "VERSION_MISMATCH")
    refused(lambda: house.put(expected=expected, validate_only=True), WrongState, "VERSION_MISMATCH")
    assert house.store.rows == before
    assert house.put(expected=there).latest == there + 1


def test_a_put_that_names_no_version_goes_on_after_one_that_was_faster(house: TamperedHouse) -> None:
    seal, rivals = house.sealing.seal, [1, 2]

    def slow(name: str, version: int, fields: dict[str, bytes]) -> tuple[int, bytes, bytes]:
        if rivals:
            rivals.pop()
            house.put(fields={"rival": b""})
        return seal(name, version, fields)

    # Put in its place: the rival has to come between the look and the write.
    house.sealing.seal = slow  # type: ignore[method-assign,assignment]
    house.put()
    assert [house.read(f"team/app/db@{number}").fields for number in (1, 2, 3)] == [{"rival": b""}] * 2 + [FIELDS]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, "FIELDS_INVALID"),
        ({f"f{number}": b"" for number in range(33)}, "FIELDS_INVALID"),
        ({"": b"x"}, "FIELD_INVALID"),
        ({"a b": b"x"}, "FIELD_INVALID"),
        ({"a/b": b"x"}, "FIELD_INVALID"),
        ({"é": b"x"}, "FIELD_INVALID"),
        ({"a" * 65: b"x"}, "FIELD_INVALID"),
        ({"a": b"x" * 65537}, "SECRET_TOO_LARGE"),
        ({"a": b"x" * 32768, "b": b"x" * 32769}, "SECRET_TOO_LARGE"),
    ],
)
def test_every_limit_of_fields_is_kept(house: TamperedHouse, fields: dict[str, bytes], why: str) -> None:
    refused(lambda: house.put(fields=fields), InvalidRequest, why)
    assert not house.store.rows[Secret]


def test_what_is_within_the_limits_is_taken(house: TamperedHouse) -> None:
    full = {"a" * 64: b"x" * 65536} | {f"f{number}": b"" for number in range(31)}
    house.put(fields=full)
    assert house.read().fields == full


def test_other_input_that_is_wrong_is_refused(house: TamperedHouse) -> None:
    refused(lambda: house.put("Team/x"), InvalidRequest, "NAME_INVALID")
    refused(lambda: house.put(labels={"Team": "a"}), InvalidRequest, "LABELS_INVALID")
    refused(lambda: house.put(expected=-1), InvalidRequest, "VERSION_INVALID")
    refused(lambda: house.put(expected=2**31 - 1), InvalidRequest, "VERSION_INVALID")
    refused(lambda: house.put(expires_at=house.clock()), InvalidRequest, "EXPIRY_PAST")
    assert not house.store.rows[Secret]


def test_validate_only_tells_and_changes_nothing(house: TamperedHouse) -> None:
    assert house.put(validate_only=True).latest == 1
    house.put()
    before = house.store.rows
    assert house.put(validate_only=True).latest == 2
    for method in (house.secrets.delete, house.secrets.undelete, house.secrets.destroy):
        name = f"{method.__name__.capitalize()}SecretVersions"
        assert method(house.call(name, validate_only=True), "team/app/db", [1]).latest == 1
        with pytest.raises(NotFound):
            method(house.call(name, validate_only=True), "team/app/db", [1, 2])
    assert house.secrets.rotate_root(house.call("RotateRootKey", validate_only=True)) == 2
    assert house.store.rows == before


def test_a_repeated_request_is_carried_out_once(house: TamperedHouse) -> None:
    for _ in range(3):
        assert house.put(request_id=REQUEST).latest == 1
    assert house.put(expected=0, request_id=REQUEST).latest == 1
    assert len(house.store.rows[SecretVersion]) == 1
    again = house.call("PutSecret", request_id=REQUEST)
    again.digest = "1" * 64
    with pytest.raises(AlreadyExists):
        house.secrets.put(again, "team/app/db", FIELDS, expected_version=None, labels={}, expires_at=None)
    other = REQUEST.replace("0b7e", "1b7e")
    for _ in range(2):
        house.secrets.delete(house.call("DeleteSecretVersions", request_id=other), "team/app/db", [1])
        house.tamper(replace(house.version("team/app/db", 1), state=SecretVersionState.ENABLED))
    assert house.version("team/app/db", 1).state is SecretVersionState.ENABLED
    assert len(house.store.rows[Receipt]) == 2


def test_a_secret_that_has_expired_is_not_read_until_it_is_put_anew(house: TamperedHouse) -> None:
    house.put(expires_at=house.clock() + timedelta(seconds=10))
    assert house.read().expires_at == house.clock() + timedelta(seconds=10)
    house.clock.forward(seconds=10)
    refused(house.read, WrongState, "SECRET_EXPIRED")
    refused(lambda: house.read("team/app/db@1"), WrongState, "SECRET_EXPIRED")
    house.put()
    assert house.read().fields == FIELDS


def test_delete_undelete_and_destroy(house: TamperedHouse) -> None:
    house.put()
    house.put(fields={"second": b"2"})
    for _ in range(2):
        house.secrets.delete(house.call("DeleteSecretVersions"), "team/app/db", [1, 2])
    refused(house.read, WrongState, "SECRET_DELETED")
    for _ in range(2):
        house.secrets.undelete(house.call("UndeleteSecretVersions"), "team/app/db", [2])
    assert house.read().fields == {"second": b"2"}
    for _ in range(2):
        house.destroy("team/app/db", 1, 2)
    refused(house.read, WrongState, "SECRET_DESTROYED")
    for method, name in ((house.secrets.delete, "Delete"), (house.secrets.undelete, "Undelete")):
        with pytest.raises(WrongState):
            method(house.call(f"{name}SecretVersions"), "team/app/db", [1])
    assert house.put().latest == 3


@pytest.mark.parametrize("versions", [[], [0], [-1], [1, 1], list(range(1, 102))])
def test_lists_of_versions_have_limits(house: TamperedHouse, versions: list[int]) -> None:
    house.put()
    refused(lambda: house.destroy("team/app/db", *versions), InvalidRequest, "VERSIONS_INVALID")


def test_one_version_that_is_not_there_leaves_all_as_they_are(house: TamperedHouse) -> None:
    house.put()
    refused(lambda: house.destroy("team/app/db", 1, 2), NotFound, "SECRET_VERSION_NOT_FOUND")
    assert house.read().fields == FIELDS


def test_ST_09_a_destroyed_version_leaves_nothing_to_open_in_the_store(house: TamperedHouse) -> None:
    house.put()
    house.destroy("team/app/db", 1)
    left = house.version("team/app/db", 1)
    assert (left.data_key, left.sealed, left.root) == (b"", b"", 0)
    assert left.fields == ("password", "user")


def test_ST_09_an_old_backup_of_a_destroyed_version_opens_only_until_its_root_key_is_rotated_out(
    house: TamperedHouse,
) -> None:
    house.put()
    house.put("team/app/other")
    backup = house.version("team/app/db", 1)
    house.destroy("team/app/db", 1)
    house.secrets.rotate_root(house.call("RotateRootKey"))
    house.work()
    house.clock.forward(hours=24)
    house.work()
    house.tamper(backup)
    refused(house.read, WrongState, "SECRET_DAMAGED")
    assert house.read("team/app/other").fields == FIELDS


def test_HS_16_destroying_drops_the_data_key_that_was_kept(house: TamperedHouse) -> None:
    house.put()
    house.read()
    kept = house.version("team/app/db", 1)
    house.destroy("team/app/db", 1)
    asked = house.hsm.calls["decrypt"]
    house.tamper(kept)  # the very row again: had the data key been kept, the HSM would not be asked
    house.read()
    assert house.hsm.calls["decrypt"] == asked + 1


def test_HS_16_also_when_nobody_knows_whether_the_destruction_was_committed(house: TamperedHouse) -> None:
    house.put()
    house.read()
    house.store.journal_full = True
    refused(lambda: house.destroy("team/app/db", 1), Unavailable, "AUDIT_UNAVAILABLE")
    house.store.journal_full = False
    asked = house.hsm.calls["decrypt"]
    house.read()
    assert house.hsm.calls["decrypt"] == asked + 1


def test_ST_02_rows_that_were_swapped_or_moved_are_refused(house: TamperedHouse) -> None:
    house.put("a/one", {"f": b"1"})
    house.put("a/two", {"f": b"2"})
    house.put("a/one", {"f": b"3"})
    one, two, newer = house.version("a/one", 1), house.version("a/two", 1), house.version("a/one", 2)
    house.tamper(replace(one, secret="a/two"))
    house.tamper(replace(two, secret="a/one"))
    house.tamper(replace(one, number=2))
    for text in ("a/one@1", "a/two", "a/one@2"):
        refused(partial(house.read, text), WrongState, "SECRET_DAMAGED")
    house.tamper(replace(newer, fields=("f", "g")))
    refused(lambda: house.read("a/one"), WrongState, "SECRET_DAMAGED")


def test_a_damaged_version_is_in_the_audit_once_and_holds_nothing_else_up(house: TamperedHouse) -> None:
    for number in range(120):
        house.put(f"a/n{number}")
    bad = house.version("a/n3", 1)
    house.tamper(replace(bad, data_key=bad.data_key[:-1] + b"\0"))
    house.secrets.rotate_root(house.call("RotateRootKey"))
    for _ in range(3):
        house.work()
    assert house.secrets.root(house.call("GetRootKey"))[1] == 1
    [alarm] = [entry for entry in house.store.entries if entry.reason == "SECRET_DAMAGED"]
    assert (alarm.resource, alarm.facts["version"]) == ("secret/a/n3", 1)


def test_who_read_last_is_written_down_later_and_shown(house: TamperedHouse) -> None:
    for name in ("team", "team-a", "team-b", "team/app/db", "team/z"):
        house.put(name)
    house.secrets.was_read("operator/bob", ["team/z", "team-a", "team-b"])
    house.secrets.was_read("pipeline/old", ["team/app/db"])
    house.clock.forward(seconds=2)
    house.secrets.was_read("pipeline/deploy", ["team/app/db"])
    assert not house.store.rows[SecretRead]
    house.secrets.flush_reads(house.own)
    _, read = house.secrets.get(house.call("GetSecret"), "team/app/db")
    assert read is not None
    assert (read.principal, read.read_at) == ("pipeline/deploy", house.clock())
    page = house.secrets.page(house.call("ListSecrets"), "team", "", (), 10)
    assert [(one.name, by.principal if by else "") for one, by in page.items] == [
        ("team", ""), ("team/app/db", "pipeline/deploy"), ("team/z", "operator/bob"),
    ]  # fmt: skip
    entries = len(house.store.entries)
    house.secrets.flush_reads(house.own)
    assert len(house.store.entries) == entries


def test_reads_that_could_not_be_written_down_are_kept_and_never_replace_newer_ones(house: TamperedHouse) -> None:
    house.put()
    house.secrets.was_read("pipeline/old", ["team/app/db"])
    house.store.journal_full = True
    with pytest.raises(Unavailable):
        house.secrets.flush_reads(house.own)
    house.store.journal_full = False
    newer = SecretRead(secret="team/app/db", principal="other/replica", read_at=house.clock() + timedelta(seconds=1))
    with house.store.write(house.own().outcome()) as write:
        write.add(newer)
    house.secrets.flush_reads(house.own)
    assert house.store.get(SecretRead, "team/app/db") == newer
    house.clock.forward(seconds=5)
    house.secrets.was_read("pipeline/deploy", ["team/app/db", *(f"a/n{number}" for number in range(250))])
    house.secrets.flush_reads(house.own)
    read = house.store.get(SecretRead, "team/app/db")
    assert read is not None
    assert read.principal == "pipeline/deploy"
    assert house.store.count(SecretRead, {}) == 251


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a", ("a", 0, "")),
        ("team/app/db", ("team/app/db", 0, "")),
        ("team/app/db@3", ("team/app/db", 3, "")),
        ("team/app/db#password", ("team/app/db", 0, "password")),
        ("team/app/db@2147483647#A.b-c_d", ("team/app/db", 2147483647, "A.b-c_d")),
    ],
)
def test_references_are_read(text: str, parts: tuple[str, int, str]) -> None:
    found = parse_reference(text)
    assert (found.text, found.name, found.version, found.field) == (text, *parts)


@pytest.mark.parametrize(
    "text",
    [
        "", "/a", "a/", "a//b", "A", "a@", "a@0", "a@01", "a@-1", "a@+1", "a@1x", "a@2147483648", "a@99999999999",
        "a#", "a#b#c", "a@1@2", "a#b@1", "a# ", "a#é", "a\n", "a@1\n", "a#b\n", "broker://a", "a b", "a\0", "\uff41",
        "a@\u0661", "a/../b", "a%2fb", "a#" + "x" * 65, "a" * 600, "/".join("abcdefghi"), "@1", "#f",
    ],
)  # fmt: skip
def test_other_references_are_refused_and_not_quoted(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_reference(text)
    assert refused.value.reason == "REFERENCE_INVALID"
    assert not refused.value.metadata


def test_no_value_is_in_a_repr_an_audit_record_or_a_row(house: TamperedHouse) -> None:
    house.put(request_id=REQUEST)
    opened = house.read()
    house.destroy("team/app/db", 1)
    shown = repr((opened, house.secrets, house.sealing, house.store.entries, house.store.rows))
    assert "hunter2" not in shown
    assert opened.fields == FIELDS


def test_what_happened_is_in_the_audit(house: TamperedHouse) -> None:
    house.store.entries.clear()
    house.put()
    house.put()
    house.destroy("team/app/db", 1)
    facts = [(entry.rpc, entry.resource, entry.decision, entry.policies) for entry in house.store.entries]
    assert facts == [
        ("SecretService/PutSecret", "secret/team/app/db", "allow", ("admins",)),
        ("SecretService/PutSecret", "secret/team/app/db", "allow", ("admins",)),
        ("SecretService/DestroySecretVersions", "secret/team/app/db", "allow", ("admins",)),
    ]


def test_a_request_id_is_not_for_other_values_than_it_was_used_for(house: TamperedHouse) -> None:
    """The receipt's digest knows no value (it would be a fast hash of it in the database); its MAC does."""
    house.put(fields={"pin": b"1234"}, request_id=REQUEST)
    refused(lambda: house.put(fields={"pin": b"4321"}, request_id=REQUEST), AlreadyExists, "REQUEST_ID_REUSED")
    assert house.put(fields={"pin": b"1234"}, request_id=REQUEST).latest == 1
    house.destroy("team/app/db", 1)
    assert house.put(fields={"pin": b"1234"}, request_id=REQUEST).latest == 1


def test_AZ_15_a_version_that_came_after_the_decision_is_not_read(house: TamperedHouse) -> None:
    house.put(labels={"team": "a"})
    reader = operator("rita", "label-a")
    house.guard.then = lambda: house.put(labels={"team": "b"})
    refused(lambda: house.read("team/app/db@2", reader), NotFound, "SECRET_VERSION_NOT_FOUND")
    refused(lambda: house.read("team/app/db@2", reader), PermissionDenied, "POLICY_DENIED")
