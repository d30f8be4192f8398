"""Static secrets as their noun: who may, which version, what is left of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from broker.core.errors import (
    AlreadyExists,
    BrokerError,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    Unavailable,
    WrongState,
)
from broker.core.kv import parse_reference
from broker.core.model import Receipt, Secret, SecretRead, SecretVersion, SecretVersionState
from tests.fakes.calls import document, operator
from tests.fakes.hsm import SoftwareHsm
from tests.fakes.memory_store import MemoryStore
from tests.fakes.secrets import FIELDS, PIPELINE, POLICY, SecretsHouse

REQUEST = "0b7e8f3e-1f5f-4c7e-9d59-0f6a4b3a2c1d"
BOB = operator("bob")
LABELLED = operator("carol", "label-a")


class House(SecretsHouse):
    store: MemoryStore
    hsm: SoftwareHsm

    def version(self, name: str, number: int) -> SecretVersion:
        found = self.store.get(SecretVersion, name, number)
        assert found is not None
        return found

    def tamper(self, version: SecretVersion) -> None:
        self.store.rows[SecretVersion][version.secret, version.number] = version


@pytest.fixture
def house() -> House:
    return House(MemoryStore(), SoftwareHsm())


def reason(kind: type[BrokerError], attempt: object, *args: object, **more: object) -> str:
    assert callable(attempt)
    with pytest.raises(kind) as refused:
        attempt(*args, **more)
    assert "canary" not in refused.value.message + repr(refused.value.metadata)
    return refused.value.reason


def test_what_was_put_is_read_and_each_put_is_a_version(house: House) -> None:
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


def test_the_versions_are_listed_with_their_fields_and_authors(house: House) -> None:
    house.put()
    house.put(fields={"z": b"", "a": b""})
    page = house.secrets.versions(house.call("ListSecretVersions"), "team/app/db", (), 1)
    assert [(one.number, one.fields, one.author) for one in page.items] == [(1, ("password", "user"), "operator/alice")]
    page = house.secrets.versions(house.call("ListSecretVersions"), "team/app/db", page.next, 10)
    assert ([(one.number, one.fields) for one in page.items], page.next) == ([(2, ("a", "z"))], ())


def test_a_put_costs_one_write_one_hsm_call_and_a_kept_read_none(house: House) -> None:
    house.put()
    entries, asked = len(house.store.entries), house.hsm.calls.total()
    house.put()
    assert (len(house.store.entries) - entries, house.hsm.calls.total() - asked) == (1, 1)
    house.read()
    asked = house.hsm.calls.total()
    house.read()
    assert (len(house.store.entries) - entries, house.hsm.calls.total() - asked) == (1, 0)


@pytest.mark.parametrize(("there", "expected"), [(0, 1), (0, 7), (2, 0), (2, 1), (2, 3)])
def test_a_put_for_another_version_than_the_latest_is_refused(house: House, there: int, expected: int) -> None:
    for _ in range(there):
        house.put()
    before = house.store.rows
    assert reason(WrongState, house.put, expected=expected) == "VERSION_MISMATCH"
    assert reason(WrongState, house.put, expected=expected, validate_only=True) == "VERSION_MISMATCH"
    assert house.store.rows == before
    assert house.put(expected=there).latest == there + 1


def test_a_put_that_names_no_version_goes_on_after_one_that_was_faster(house: House) -> None:
    seal, rivals = house.sealing.seal, [1, 2]

    def slow(name: str, version: int, fields: dict[str, bytes]) -> tuple[int, bytes, bytes]:
        if rivals:
            rivals.pop()
            house.put(fields={"rival": b""})
        return seal(name, version, fields)

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
def test_every_limit_of_fields_is_kept(house: House, fields: dict[str, bytes], why: str) -> None:
    assert reason(InvalidRequest, house.put, fields=fields) == why
    assert not house.store.rows[Secret]


def test_what_is_within_the_limits_is_taken(house: House) -> None:
    full = {"a" * 64: b"x" * 65536} | {f"f{number}": b"" for number in range(31)}
    house.put(fields=full)
    assert house.read().fields == full


def test_other_input_that_is_wrong_is_refused(house: House) -> None:
    assert reason(InvalidRequest, house.put, "Team/x") == "NAME_INVALID"
    assert reason(InvalidRequest, house.put, labels={"Team": "a"}) == "LABELS_INVALID"
    assert reason(InvalidRequest, house.put, expected=-1) == "VERSION_INVALID"
    assert reason(InvalidRequest, house.put, expected=2**31 - 1) == "VERSION_INVALID"
    assert reason(InvalidRequest, house.put, expires_at=house.clock()) == "EXPIRY_PAST"
    assert not house.store.rows[Secret]


def test_validate_only_tells_and_changes_nothing(house: House) -> None:
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


def test_a_repeated_request_is_carried_out_once(house: House) -> None:
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


def test_a_secret_that_has_expired_is_not_read_until_it_is_put_anew(house: House) -> None:
    house.put(expires_at=house.clock() + timedelta(seconds=10))
    assert house.read().expires_at == house.clock() + timedelta(seconds=10)
    house.clock.forward(seconds=10)
    assert reason(WrongState, house.read) == "SECRET_EXPIRED"
    assert reason(WrongState, house.read, "team/app/db@1") == "SECRET_EXPIRED"
    house.put()
    assert house.read().fields == FIELDS


def test_delete_undelete_and_destroy(house: House) -> None:
    house.put()
    house.put(fields={"second": b"2"})
    for _ in range(2):
        house.secrets.delete(house.call("DeleteSecretVersions"), "team/app/db", [1, 2])
    assert reason(WrongState, house.read) == "SECRET_DELETED"
    for _ in range(2):
        house.secrets.undelete(house.call("UndeleteSecretVersions"), "team/app/db", [2])
    assert house.read().fields == {"second": b"2"}
    for _ in range(2):
        house.destroy("team/app/db", 1, 2)
    assert reason(WrongState, house.read) == "SECRET_DESTROYED"
    for method, name in ((house.secrets.delete, "Delete"), (house.secrets.undelete, "Undelete")):
        with pytest.raises(WrongState):
            method(house.call(f"{name}SecretVersions"), "team/app/db", [1])
    assert house.put().latest == 3


@pytest.mark.parametrize("versions", [[], [0], [-1], [1, 1], list(range(1, 102))])
def test_lists_of_versions_have_limits(house: House, versions: list[int]) -> None:
    house.put()
    assert reason(InvalidRequest, house.destroy, "team/app/db", *versions) == "VERSIONS_INVALID"


def test_one_version_that_is_not_there_leaves_all_as_they_are(house: House) -> None:
    house.put()
    assert reason(NotFound, house.destroy, "team/app/db", 1, 2) == "SECRET_VERSION_NOT_FOUND"
    assert house.read().fields == FIELDS


def test_ST_09_a_destroyed_version_leaves_nothing_to_open_in_the_store(house: House) -> None:
    house.put()
    house.destroy("team/app/db", 1)
    left = house.version("team/app/db", 1)
    assert (left.data_key, left.sealed, left.root) == (b"", b"", 0)
    assert left.fields == ("password", "user")


def test_ST_09_an_old_backup_of_a_destroyed_version_opens_only_until_its_root_key_is_rotated_out(house: House) -> None:
    house.put()
    house.put("team/app/other")
    backup = house.version("team/app/db", 1)
    house.destroy("team/app/db", 1)
    house.secrets.rotate_root(house.call("RotateRootKey"))
    house.work()
    house.clock.forward(hours=24)
    house.work()
    house.tamper(backup)
    assert reason(WrongState, house.read) == "SECRET_DAMAGED"
    assert house.read("team/app/other").fields == FIELDS


def test_HS_16_destroying_drops_the_data_key_that_was_kept(house: House) -> None:
    house.put()
    house.read()
    kept = house.version("team/app/db", 1)
    house.destroy("team/app/db", 1)
    asked = house.hsm.calls["decrypt"]
    house.tamper(kept)  # the very row again: had the data key been kept, the HSM would not be asked
    house.read()
    assert house.hsm.calls["decrypt"] == asked + 1


def test_HS_16_also_when_nobody_knows_whether_the_destruction_was_committed(house: House) -> None:
    house.put()
    house.read()
    house.store.journal_full = True
    assert reason(Unavailable, house.destroy, "team/app/db", 1) == "AUDIT_UNAVAILABLE"
    house.store.journal_full = False
    asked = house.hsm.calls["decrypt"]
    house.read()
    assert house.hsm.calls["decrypt"] == asked + 1


def test_ST_02_rows_that_were_swapped_or_moved_are_refused(house: House) -> None:
    house.put("a/one", {"f": b"1"})
    house.put("a/two", {"f": b"2"})
    house.put("a/one", {"f": b"3"})
    one, two, newer = house.version("a/one", 1), house.version("a/two", 1), house.version("a/one", 2)
    house.tamper(replace(one, secret="a/two"))
    house.tamper(replace(two, secret="a/one"))
    house.tamper(replace(one, number=2))
    for text in ("a/one@1", "a/two", "a/one@2"):
        assert reason(WrongState, house.read, text) == "SECRET_DAMAGED"
    house.tamper(replace(newer, fields=("f", "g")))
    assert reason(WrongState, house.read, "a/one") == "SECRET_DAMAGED"


def test_a_damaged_version_is_in_the_audit_once_and_holds_nothing_else_up(house: House) -> None:
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


def test_the_permission_comes_first_and_absent_looks_like_forbidden(house: House) -> None:
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
    assert reason(NotFound, house.read, "team/app/nothing") == "SECRET_NOT_FOUND"
    assert reason(NotFound, house.read, "team/app/db@2") == "SECRET_VERSION_NOT_FOUND"
    assert reason(NotFound, house.read, "team/app/db#none") == "FIELD_NOT_FOUND"


def test_a_pipeline_reads_what_its_folder_holds_and_writes_nothing(house: House) -> None:
    house.put()
    house.put("team/apps/db")
    assert house.read(principal=PIPELINE).fields == FIELDS
    assert reason(PermissionDenied, house.read, "team/apps/db", PIPELINE) == "POLICY_DENIED"
    assert reason(PermissionDenied, house.put, principal=PIPELINE) == "POLICY_DENIED"


def test_AZ_15_labels_that_change_before_the_write_are_decided_on_anew(house: House) -> None:
    house.put(labels={"team": "a"})
    seal = house.sealing.seal

    def relabelled(name: str, version: int, fields: dict[str, bytes]) -> tuple[int, bytes, bytes]:
        stored = house.store.get(Secret, name)
        assert stored is not None
        with house.store.write(house.own().outcome()) as write:
            write.replace(stored, replace(stored, labels={"team": "b"}))
        return seal(name, version, fields)

    house.sealing.seal = relabelled  # type: ignore[method-assign,assignment]
    assert reason(PermissionDenied, house.put, principal=LABELLED) == "POLICY_DENIED"
    assert house.version("team/app/db", 1)
    assert house.store.get(SecretVersion, "team/app/db", 2) is None


def test_AZ_15_labels_that_change_before_a_destruction_are_decided_on_anew(house: House) -> None:
    house.put(labels={"team": "a"})
    permitted, stored = house.secrets._permitted, house.store.get(Secret, "team/app/db")
    assert stored is not None

    def relabelled(asked: object, name: str) -> Secret:
        seen = permitted(asked, name)  # type: ignore[arg-type]
        with house.store.write(house.own().outcome()) as write:
            write.replace(stored, replace(stored, labels={}))
        return seen

    house.secrets._permitted = relabelled  # type: ignore[method-assign,assignment]
    with pytest.raises(PermissionDenied):
        house.secrets.destroy(house.call("DestroySecretVersions", LABELLED), "team/app/db", [1])
    assert house.version("team/app/db", 1).sealed


def test_AZ_15_nobody_labels_a_secret_into_or_out_of_what_he_may(house: House) -> None:
    house.put("x/mine", labels={"team": "a"}, principal=LABELLED)
    assert reason(PermissionDenied, house.put, "x/mine", labels={"team": "b"}, principal=LABELLED) == "POLICY_DENIED"
    house.put("x/theirs", labels={"team": "b"})
    assert reason(PermissionDenied, house.put, "x/theirs", labels={"team": "a"}, principal=LABELLED) == "POLICY_DENIED"
    assert reason(PermissionDenied, house.put, "x/new", principal=LABELLED) == "POLICY_DENIED"


def test_AZ_15_a_policy_that_changes_holds_for_the_very_next_read(house: House) -> None:
    house.put()
    house.read(principal=PIPELINE)
    house.guard.load(document(POLICY.replace("team/app", "team/else"), version=2))
    assert reason(PermissionDenied, house.read, "team/app/db", PIPELINE) == "POLICY_DENIED"


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
    house: House, prefix: str, contains: str, found: tuple[str, ...], limit: int
) -> None:
    for name in NAMES:
        house.put(name)
    assert tuple(house.names(prefix, contains, limit)) == found


@pytest.mark.parametrize("text", ["%", "_", "'", "' OR 1=1 --", "\\", "*", "D", "[a-z]", '"', ";", "\0"])
def test_ST_06_what_is_looked_for_is_never_a_pattern_or_a_statement(house: House, text: str) -> None:
    for name in NAMES:
        house.put(name)
    assert house.names("", text) == []
    assert reason(InvalidRequest, house.names, text) == "NAME_INVALID"
    assert reason(InvalidRequest, house.names, "", text * 513) == "FILTER_INVALID"


def test_AZ_04_nothing_that_may_not_be_got_shows_in_a_list(house: House) -> None:
    for number in range(40):
        house.put(f"x/n{number:02}", labels={"team": "a" if number % 3 == 0 else "b"})
    mine = [f"x/n{number:02}" for number in range(0, 40, 3)]
    for prefix, contains, limit in (("", "", 100), ("x", "", 2), ("x", "n", 1), ("", "/n", 5)):
        assert house.names(prefix, contains, limit, LABELLED) == mine
    assert house.names("x/n01", principal=LABELLED) == []
    assert reason(PermissionDenied, house.names, principal=BOB) == "POLICY_DENIED"
    assert reason(PermissionDenied, house.names, "x", principal=PIPELINE) == "POLICY_DENIED"


def test_a_list_longer_than_what_is_looked_at_at_once_is_whole(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.core.kv.SCANNED", 4)
    names = ["x", *(f"x/n{number:02}" for number in range(17))]
    for name in names:
        house.put(name)
    assert house.names("x", limit=3) == names
    assert house.names("", "n1", limit=3) == names[11:]
    assert house.names("x", "nothing") == []


def test_who_read_last_is_written_down_later_and_shown(house: House) -> None:
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


def test_reads_that_could_not_be_written_down_are_kept_and_never_replace_newer_ones(house: House) -> None:
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


def test_no_value_is_in_a_repr_an_audit_record_or_a_row(house: House) -> None:
    house.put(request_id=REQUEST)
    opened = house.read()
    house.destroy("team/app/db", 1)
    shown = repr((opened, house.secrets, house.sealing, house.store.entries, house.store.rows))
    assert "hunter2" not in shown
    assert opened.fields == FIELDS


def test_what_happened_is_in_the_audit(house: House) -> None:
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
