"""The Store port's contract, on SQLite, on PostgreSQL and in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.core import ports
from broker.core.errors import AlreadyExists, BrokerError, InvalidRequest, Unavailable, WrongState
from broker.core.kinds import KeyState, VersionState
from broker.core.model import AuditHead, Key, KeyVersion, Operator, PolicyDocument, Record
from broker.core.ports import Store
from broker.core.records import RECORDS, key_of
from broker.store.config import StoreConfig
from broker.store.sql import SqlStore
from tests.contracts.store.grounds import Ground, calls, ground, store
from tests.contracts.store.places import database, place
from tests.contracts.store.samples import (
    ROW_KEY,
    SIGNER,
    config,
    entry,
    head,
    key,
    now,
    opened,
    put,
    read_journal,
    sample,
    samples,
    version,
)

__all__ = ["database", "ground", "place", "store"]  # fixtures


def test_an_open_store_is_well(store: Store) -> None:
    store.check()


@pytest.mark.sampled(1, each="record")
@pytest.mark.parametrize("record", samples(), ids=lambda record: f"{type(record).__name__}-{key_of(record)[-1]}")
def test_a_record_comes_back_as_it_was(store: Store, record: Record) -> None:
    put(store, record)
    assert store.get(type(record), *key_of(record)) == record
    assert store.page(type(record), limit=2) == [record]
    with store.write(entry()) as write:
        assert write.get(type(record), *key_of(record)) == record
        assert write.page(type(record), limit=2) == [record]


@pytest.mark.sampled(1, each="kind")
@pytest.mark.parametrize("kind", list(RECORDS), ids=lambda kind: kind.__name__)
def test_nothing_is_none(store: Store, kind: type[Any]) -> None:
    wanted = {record.__class__: key_of(record) for record in samples()}[kind]
    assert store.get(kind, *wanted) is None
    assert store.page(kind, limit=1) == []
    with store.write(entry()) as write:
        assert write.get(kind, *wanted) is None


def test_a_part_of_a_primary_key_is_a_bug(store: Store) -> None:
    with pytest.raises(ValueError, match="zip"):
        store.get(KeyVersion, "payments")
    with pytest.raises(TypeError):
        store.get(KeyVersion, "payments", "1")


def test_version_finds_the_primary_and_any_other(store: Store) -> None:
    put(store, key(primary=2), version(number=1), version(number=2), key("new", primary=0), key("k3"))
    assert store.version("payments", 0) == (key(primary=2), version(number=2))
    assert store.version("payments", 1) == (key(primary=2), version(number=1))
    assert store.version("payments", 3) is None
    assert store.version("new", 0) is None
    assert store.version("absent", 0) is None


def test_pages_go_on_after_a_whole_key(store: Store) -> None:
    put(store, *(version(name, number) for name in ("b", "a") for number in (10, 9, 1)))
    expected = [("a", 1), ("a", 9), ("a", 10), ("b", 1), ("b", 9), ("b", 10)]
    seen: list[tuple[Any, ...]] = []
    after: tuple[Any, ...] = ()
    while found := store.page(KeyVersion, after=after, limit=2):
        seen += [after := key_of(record) for record in found]
    assert seen == expected
    with pytest.raises(ValueError, match="at least one"):
        store.page(Key, limit=0)


def test_a_page_keeps_what_equals(store: Store) -> None:
    put(store, version("a", 1), version("a", 2, state=VersionState.PENDING, sealed=True), version("b", 1))
    assert [found.number for found in store.page(KeyVersion, limit=9, where={"key": "a"})] == [1, 2]
    assert [found.number for found in store.page(KeyVersion, limit=9, where={"state": VersionState.PENDING})] == [2]
    assert store.page(KeyVersion, limit=9, where={"state": VersionState.PENDING, "key": "b"}) == []
    assert [found.key for found in store.page(KeyVersion, limit=9, where={"number": 1}, after=("a", 1))] == ["b"]


def test_ST_15_order_and_equality_are_those_of_bytes(store: Store) -> None:
    names = ["a-b", "a", "A", "ab", "a_b", "é", "e", "z", "ß", "ss", "\U0001f511", "~", "a b", "İ", "i", "I", "\ufffd"]
    put(store, *(key(name) for name in names))
    assert [found.name for found in store.page(Key, limit=99)] == sorted(names, key=str.encode)
    after = sorted(names, key=str.encode)
    assert [found.name for found in store.page(Key, limit=99, after=("a b",))] == after[after.index("a b") + 1 :]
    assert store.get(Key, "Z") is None
    assert store.get(Key, "e\u0301") is None


HOSTILE = [
    "' OR '1'='1",
    "x'; DROP TABLE keys; --",
    '"',
    "\\",
    "%",
    "_",
    "$1",
    ":name",
    "?",
    "%(name)s",
    "a/**/b",
    "\u2019",
]


def test_ST_06_what_looks_like_sql_is_a_value(store: Store) -> None:
    put(store, key("honest"), *(key(text) for text in HOSTILE))
    for text in HOSTILE:
        assert store.get(Key, text) == key(text)
        assert store.page(Key, limit=99, where={"name": text}) == [key(text)]
        assert store.page(Key, limit=99, where={"state": text}) == []
        assert store.page(Key, limit=99, begins=f"{text}/") == []
        assert key(text) not in store.page(Key, limit=99, after=(text,))
        assert store.version(text, 0) is None
    with pytest.raises(ValueError, match="not looked for"):
        store.page(Key, limit=1, where={"name = name OR name": "x"})
    assert store.get(Key, "honest") == key("honest")


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "x" * (2**20 + 1)], ids=["nul", "surrogate", "long"])
def test_what_one_database_would_not_keep_is_refused_by_both(store: Store, text: str) -> None:
    tries: list[Callable[[], object]] = [
        lambda: store.get(Key, text),
        lambda: store.version(text, 0),
        lambda: store.page(Key, limit=1, after=(text,)),
        lambda: store.page(Key, limit=1, where={"state": text}),
        lambda: store.page(Key, limit=1, begins=f"{text}/"),
        lambda: store.last(KeyVersion, text),
        lambda: put(store, key(text)),
        lambda: put(store, key(owner=text)),
        lambda: store.get(KeyVersion, "a", 2**63),
        lambda: put(store, key(primary=2**63)),
    ]
    for attempt in tries:
        with pytest.raises(InvalidRequest) as refused:
            attempt()
        assert refused.value.reason == "VALUE_NOT_STORABLE"
        assert text not in refused.value.message
    assert store.page(Key, limit=1) == []


def test_a_name_is_taken_once_and_the_transaction_lives_on(store: Store) -> None:
    put(store, key())
    with store.write(entry()) as write:
        with pytest.raises(AlreadyExists) as refused:
            write.add(key(owner="other"))
        write.add(key("second"))
    assert refused.value.reason == "NAME_TAKEN"
    assert store.get(Key, "payments") == key()
    assert store.get(Key, "second") == key("second")


def test_replace_counts_revisions_and_refuses_an_outdated_copy(store: Store) -> None:
    put(store, key())
    with store.write(entry()) as write:
        second = write.replace(key(), key(state=KeyState.DISABLED))
    assert second == key(state=KeyState.DISABLED, revision=2)
    assert store.get(Key, "payments") == second
    with pytest.raises(WrongState) as refused, store.write(entry()) as write:
        write.replace(key(), key(owner="other"))
    assert refused.value.reason == "CHANGED_MEANWHILE"
    assert store.get(Key, "payments") == second
    with pytest.raises(ValueError, match="same kind and name"), store.write(entry()) as write:
        write.replace(second, key("other"))


def test_delete_refuses_an_outdated_copy(store: Store) -> None:
    put(store, key(revision=2))
    with pytest.raises(WrongState) as refused, store.write(entry()) as write:
        write.delete(key())
    assert refused.value.reason == "CHANGED_MEANWHILE"
    with store.write(entry()) as write:
        write.delete(key(revision=2))
        assert write.get(Key, "payments") is None
    assert store.get(Key, "payments") is None


def test_changes_are_seen_together_at_the_end_or_not_at_all(store: Store, ground: Ground) -> None:
    with store.write(entry("good")) as write:
        write.add(key())
        write.add(version())
        assert store.get(Key, "payments") is None
        assert write.get(Key, "payments") == key()
    assert store.version("payments", 0) == (key(), version())
    with pytest.raises(AlreadyExists), store.write(entry("bad")) as write:
        add_both(write, key("second"), key())
    assert store.get(Key, "second") is None
    assert calls(ground) == ["good"]


def test_notes_are_in_the_entry(store: Store, ground: Ground) -> None:
    with store.write(entry(facts={"version": 1, "state": "x"})) as write:
        write.note(version=2, replayed=1)
    store.record(entry("read"))
    (chain,) = ground.journal().values()
    assert chain[1]["facts"] == {"version": 2, "state": "x", "replayed": 1}
    assert chain[2]["call"] == "read"
    with pytest.raises(ValueError, match="not recordable"), store.write(entry()) as write:
        write.note(pin=1)


def test_heads_are_due_until_they_are_saved(store: Store, ground: Ground) -> None:
    (first,) = store.heads()
    (chain,) = ground.journal()
    assert (first.chain, first.sequence, first.signature) == (chain, 1, b"")
    store.record(entry())
    store.save_head(replace(first, signature=b"\x30\x01"))
    (second,) = store.heads()
    assert second.sequence == 3  # the record that came in between, and the head's own line
    signed = replace(second, signature=b"\x30\x02")
    store.save_head(signed)
    assert store.heads() == []
    store.save_head(signed)  # two threads may have signed the same
    assert store.page(AuditHead, limit=9) == [replace(first, signature=b"\x30\x01"), signed]
    store.record(entry())
    assert [found.sequence for found in store.heads()] == [6]


def test_a_head_of_a_chain_that_was_left_is_kept_in_the_database_alone(store: Store, ground: Ground) -> None:
    store.save_head(head("broker-20200101T000000Z-0123456789abcdef", 5))
    assert store.get(AuditHead, "broker-20200101T000000Z-0123456789abcdef", 5) is not None
    (chain,) = ground.journal().values()
    assert [record["kind"] for record in chain] == ["entry"]


def test_every_write_has_exactly_one_winner(store: Store) -> None:
    put(store, key())
    start = threading.Barrier(8)

    def race(number: int) -> str:
        start.wait()
        try:
            with store.write(entry()) as write:
                write.replace(key(), key(owner=f"o{number}"))
        except BrokerError as refused:
            return refused.reason
        return "won"

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(race, range(8)))
    assert results.count("won") == 1
    assert set(results) <= {"won", "CHANGED_MEANWHILE"}
    found = store.get(Key, "payments")
    assert found is not None
    assert found.revision == 2


def count_with_get(write: ports.Write) -> None:
    add_one(write, write.get(Operator, "counter"))


def count_with_page(write: ports.Write) -> None:
    last = max((found.version for found in write.page(PolicyDocument, limit=999)), default=-1)
    write.add(replace(document(), version=last + 1))


@pytest.mark.parametrize("count", [count_with_get, count_with_page])
def test_what_a_write_has_read_does_not_change_under_it(store: Store, count: Callable[[ports.Write], None]) -> None:
    """Eight threads add one to a counter five times each, which does not exist at first."""
    start = threading.Barrier(8)

    def five(_: int) -> list[str]:
        start.wait()
        reasons: list[str] = []
        while reasons.count("") < 5:
            reasons.append(attempt(store, count))
        return reasons

    with ThreadPoolExecutor(8) as pool:
        reasons = {reason for reasons in pool.map(five, range(8)) for reason in reasons}
    assert reasons <= {"", "STORE_UNAVAILABLE"}  # it may wait too long for the others, no more
    if count is count_with_get:
        assert store.page(Operator, limit=2)[0].revision == 40
    else:
        assert [found.version for found in store.page(PolicyDocument, limit=99)] == list(range(40))


def attempt(store: Store, body: Callable[[ports.Write], None]) -> str:
    try:
        with store.write(entry()) as write:
            body(write)
    except BrokerError as refused:
        return refused.reason
    return ""


def add_both(write: ports.Write, first: Record, second: Record) -> None:
    write.add(first)
    write.add(second)


def document() -> PolicyDocument:
    return sample(PolicyDocument)


def add_one(write: ports.Write, found: Operator | None) -> None:
    if found is None:
        write.add(replace(sample(Operator), name="counter"))
    else:
        write.replace(found, found)


def test_a_store_that_is_closed_refuses(ground: Ground) -> None:
    with ground.opened() as store:
        put(store, key())
    with pytest.raises(Unavailable) as refused:
        store.record(entry())
    assert refused.value.reason == "AUDIT_UNAVAILABLE"
    with pytest.raises(Unavailable):
        put(store, key("late"))
    with ground.opened() as store:
        assert store.page(Key, limit=9) == [key()]


def test_records_outlive_the_process(ground: Ground) -> None:
    with ground.opened() as store:
        put(store, key())
    with ground.opened() as store:
        assert store.get(Key, "payments") == key()
        put(store, key("second"))
    first, second = ground.journal().values()  # each process has a chain of its own
    assert (len(first), len(second)) == (2, 2)


def test_a_chain_names_the_end_of_the_one_before(place: StoreConfig) -> None:
    """On databases alone: the journal in memory is no folder that somebody else could have written to."""
    with opened(place) as store:
        put(store, key())
        SIGNER.sign_due(store)
    with opened(place) as store:
        assert store.get(Key, "payments") == key()
    first, second = sorted(read_journal(place.journal).items())
    link = max((chain[1][0]["facts"] for chain in (first, second)), key=len)
    assert (link["former_sequence"], link["former_end"], link["former_strays"]) == (2, 3, 0)


def test_an_unmigrated_database_is_refused(tmp_path: Path) -> None:
    for reason in ("STORE_MISSING", "STORE_NOT_MIGRATED"):
        with pytest.raises(WrongState) as refused:
            SqlStore(config(f"sqlite:///{tmp_path}/new.db", tmp_path), ROW_KEY, now)
        assert refused.value.reason == reason
        (tmp_path / "new.db").touch(mode=0o600)
    SqlStore.migrate(config(f"sqlite:///{tmp_path}/new.db", tmp_path))
    with opened(config(f"sqlite:///{tmp_path}/new.db", tmp_path)) as store:
        store.check()
