"""Secrets that are changed field by field, and what a put tells of what it drops."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest

from broker.core.errors import AlreadyExists, InvalidRequest, NotFound, PermissionDenied, WrongState
from broker.core.model import SecretVersion
from broker.core.secrets.lifecycle import Secrets
from broker.core.secrets.putting import Written
from tests.fakes.calls import operator
from tests.fakes.hsm import SoftwareHsm
from tests.fakes.memory_store import MemoryStore
from tests.fakes.refusals import refused
from tests.fakes.secrets import FIELDS, TamperedHouse

REQUEST = "0b7e8f3e-1f5f-4c7e-9d59-0f6a4b3a2c1d"
NEW = {"password": b"canary-new"}
WRITER = operator("walt", "secret-operators")


@pytest.fixture
def house() -> TamperedHouse:
    return TamperedHouse(MemoryStore(), SoftwareHsm())


def before_the_write(house: TamperedHouse, act: Any) -> None:
    """Let ``act`` happen once, when the next write is about to begin: what was read is old by then."""
    write, acts = house.store.write, [act]

    def first(*arguments: Any) -> Any:
        if acts:
            acts.pop()()
        return write(*arguments)

    # Put in its place: what happens has to come between the read and the write.
    house.store.write = first  # type: ignore[method-assign,assignment]


def test_P51_a_patch_changes_what_it_names_and_keeps_the_rest(house: TamperedHouse) -> None:
    until = house.clock() + timedelta(days=1)
    house.put(labels={"team": "a"}, expires_at=until)
    made = house.patch(NEW)
    assert (made.latest, made.labels, made.expires_at) == (2, {"team": "a"}, until)
    assert house.read().fields == {**FIELDS, **NEW}
    assert house.read("team/app/db@1").fields == FIELDS
    assert house.patch({"host": b"db-1"}, "user").latest == 3
    assert house.read().fields == {**NEW, "host": b"db-1"}
    assert house.patch({}, "host").latest == 4
    assert house.read().fields == NEW


def test_P51_who_may_patch_need_not_be_able_to_fetch_and_sees_nothing(house: TamperedHouse) -> None:
    house.put()
    refused(lambda: house.read(principal=WRITER), PermissionDenied)
    made = house.secrets.patch(
        house.call("PatchSecret", WRITER), "team/app/db", {"host": b"x"}, [], expected_version=None
    )
    assert house.read().fields == {**FIELDS, "host": b"x"}
    assert "canary" not in repr(made) + repr(house.store.entries)
    assert house.store.entries[-1].rpc == "SecretService/PatchSecret"
    assert house.store.get(SecretVersion, "team/app/db", 2).author == "operator/walt"  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["team/app/db", "team/app/never"])
def test_who_may_not_patch_does_not_learn_whether_it_is_there(house: TamperedHouse, name: str) -> None:
    house.put()
    outsider = operator("eve")
    refused(lambda: house.patch(NEW, name=name, principal=outsider), PermissionDenied, "POLICY_DENIED")
    refused(lambda: house.patch({}, "nothing", name=name, principal=outsider), PermissionDenied, "POLICY_DENIED")
    assert len(house.store.page(SecretVersion, limit=10)) == 1


def test_what_is_no_patch_is_refused(house: TamperedHouse) -> None:
    house.put()
    refused(lambda: house.patch({}), InvalidRequest, "FIELDS_INVALID")
    refused(lambda: house.patch(NEW, "password"), InvalidRequest, "FIELDS_INVALID")
    refused(lambda: house.patch({}, "user", "user"), InvalidRequest, "FIELDS_INVALID")
    refused(lambda: house.patch({}, "user", "password"), InvalidRequest, "FIELDS_INVALID")
    refused(lambda: house.patch({"a b": b""}), InvalidRequest, "FIELD_INVALID")
    refused(lambda: house.patch({}, "a b"), InvalidRequest, "FIELD_INVALID")
    refused(lambda: house.patch({"big": b"x" * (64 * 1024)}), InvalidRequest, "SECRET_TOO_LARGE")
    refused(lambda: house.patch({f"f{number}": b"" for number in range(31)}), InvalidRequest, "FIELDS_INVALID")
    refused(lambda: house.patch({}, "nothing"), NotFound, "FIELD_NOT_FOUND")
    refused(lambda: house.patch(NEW, name="team/app/never"), NotFound, "SECRET_NOT_FOUND")
    refused(lambda: house.patch(NEW, expected=7), WrongState, "VERSION_MISMATCH")
    assert house.read().version == 1


def test_what_is_not_there_to_be_changed_is_not_brought_back(house: TamperedHouse) -> None:
    house.put()
    house.secrets.delete(house.call("DeleteSecretVersions"), "team/app/db", [1])
    refused(lambda: house.patch(NEW), WrongState, "SECRET_DELETED")
    house.secrets.undelete(house.call("UndeleteSecretVersions"), "team/app/db", [1])
    before_the_write(house, lambda: house.destroy("team/app/db", 1))
    refused(lambda: house.patch(NEW), WrongState, "SECRET_DESTROYED")  # between the reading and the writing
    refused(lambda: house.patch(NEW), WrongState, "SECRET_DESTROYED")
    house.put(expires_at=house.clock() + timedelta(seconds=1))
    house.clock.forward(seconds=2)
    refused(lambda: house.patch(NEW), WrongState, "SECRET_EXPIRED")


def test_P51_a_patch_takes_what_another_has_put_meanwhile(house: TamperedHouse) -> None:
    house.put()
    before_the_write(house, lambda: house.put(fields={"user": b"other", "host": b"db-2"}))
    assert house.patch(NEW).latest == 3
    assert house.read().fields == {"user": b"other", "host": b"db-2", **NEW}
    before_the_write(house, lambda: house.put(fields={"user": b"third"}))
    refused(lambda: house.patch(NEW, expected=3), WrongState, "VERSION_MISMATCH")
    assert house.read().fields == {"user": b"third"}


def test_P51_patches_at_once_are_all_in_the_last_version(house: TamperedHouse) -> None:
    house.put(fields={"start": b""})
    threads = [threading.Thread(target=house.patch, args=({f"field{number}": b"%d" % number},)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert house.read().fields == {"start": b"", **{f"field{number}": b"%d" % number for number in range(8)}}
    assert house.read().version == 9


def test_P51_a_repeated_patch_is_carried_out_once(house: TamperedHouse) -> None:
    house.put()
    assert house.patch(NEW, "user", request_id=REQUEST).latest == 2
    assert house.patch(NEW, "user", request_id=REQUEST).latest == 2  # the field is gone by now
    house.put(fields={"user": b"again"})
    house.destroy("team/app/db", 2)
    assert house.patch(NEW, "user", request_id=REQUEST).latest == 3
    assert house.read().fields == {"user": b"again"}
    other = {"password": b"canary-other"}
    refused(lambda: house.patch(other, "user", request_id=REQUEST), AlreadyExists, "REQUEST_ID_REUSED")


def test_a_patch_can_be_tried(house: TamperedHouse) -> None:
    house.put()
    assert house.patch(NEW, validate_only=True).latest == 2
    refused(lambda: house.patch({}, "nothing", validate_only=True), NotFound, "FIELD_NOT_FOUND")
    assert house.read().version == 1


def put(house: TamperedHouse, fields: dict[str, bytes], **more: Any) -> Written:
    secrets: Secrets = house.secrets
    made = house.call("PutSecret", **more)
    return secrets.put(made, "team/app/db", fields, expected_version=None, labels={}, expires_at=None)


def test_P51_a_put_tells_what_it_drops(house: TamperedHouse) -> None:
    until = house.clock() + timedelta(days=1)
    assert put(house, dict(FIELDS)).dropped == ()
    house.put(expires_at=until)
    tried = put(house, NEW, validate_only=True)
    made = put(house, NEW, request_id=REQUEST)
    assert [(one.dropped, one.dropped_expiry) for one in (tried, made)] == [(("user",), until)] * 2
    assert put(house, {"x": b"", **NEW}).dropped == ()
    assert put(house, NEW, request_id=REQUEST).dropped == ("user",)  # of the version that it made, not of the latest
    assert put(house, {"y": b""}).dropped == ("password", "x")
