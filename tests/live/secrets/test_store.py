"""Static secrets on real databases and a real token: races, rotation under load, and what is left on the disk."""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from broker.core.errors import BrokerError, Unavailable, WrongState
from broker.core.model import RootKey, SecretRead, SecretVersion
from broker.core.secrets.root_rows import ref
from broker.store.sql import SqlStore
from tests.contracts.store.samples import ROW_KEY, config
from tests.fakes.calls import Clock
from tests.fakes.hsm import SoftwareHsm
from tests.fakes.refusals import refused
from tests.fakes.secrets import FIELDS, PIPELINE, SecretsHouse
from tests.servers.databases import migrate
from tests.servers.postgres import Postgres
from tests.servers.softhsm import KeysHsm

WRITERS = 50
ROUNDS, ROTATIONS = 4, 4
"""`make soak` has two hundred rounds of writers, and forty rotations."""


@contextmanager
def stored(url: str, folder: Path, clock: Clock) -> Iterator[SqlStore]:
    place = config(url, folder)
    migrate(place)
    store = SqlStore(place, ROW_KEY, clock)
    try:
        yield store
    finally:
        store.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'broker.db'}"
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    name = postgres.create_database()
    yield postgres.url(name)
    postgres.drop_database(name)


@pytest.fixture
def house(url: str, tmp_path: Path) -> Iterator[SecretsHouse]:
    clock = Clock()
    with stored(url, tmp_path, clock) as store:
        yield SecretsHouse(store, SoftwareHsm(), clock=clock)


def one_wins(house: SecretsHouse, rounds: int) -> None:
    """Of fifty writers of one version exactly one does, in each round."""
    gate = threading.Barrier(WRITERS)

    def attempt(writer: int, expected: int) -> str:
        gate.wait(60)
        request = str(uuid4())
        while True:
            try:
                house.put(fields={"by": b"%d" % writer}, expected=expected, request_id=request)
            except WrongState as refusal:
                return refusal.reason
            except Unavailable:  # more writers than connections: sent again, as a client does, under the same id
                continue
            return f"won {writer}"

    with ThreadPoolExecutor(WRITERS) as threads:
        for expected in range(rounds):
            ended = Counter(threads.map(attempt, range(WRITERS), [expected] * WRITERS))
            [winner] = [one.removeprefix("won ") for one in ended if one.startswith("won")]
            assert ended == {f"won {winner}": 1, "VERSION_MISMATCH": WRITERS - 1}
            assert house.read().fields == {"by": winner.encode()}
            assert house.read().version == expected + 1


def test_of_fifty_writers_of_one_version_exactly_one_wins_each_round(house: SecretsHouse) -> None:
    one_wins(house, ROUNDS)


def test_writers_that_name_no_version_all_get_one_of_their_own(house: SecretsHouse) -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda one: house.put(fields={"by": b"%d" % one}).latest, range(24)))
    assert sorted(made) == list(range(1, 25))
    for writer, number in enumerate(made):
        assert house.read(f"team/app/db@{number}").fields == {"by": b"%d" % writer}


def test_ST_09_a_destroyed_version_is_gone_from_its_row(house: SecretsHouse) -> None:
    house.put()
    house.destroy("team/app/db", 1)
    row = house.store.get(SecretVersion, "team/app/db", 1)
    assert (row.data_key, row.sealed, row.root) == (b"", b"", 0)
    with pytest.raises(WrongState):
        house.read()


def test_ST_06_what_is_looked_for_is_no_pattern_for_the_database(house: SecretsHouse) -> None:
    house.put()
    for text in ("%", "_", "'", "' OR 'a'='a", "\\", "a' --", '"', "team_app", "TEAM"):
        assert house.names("", text) == [], text
        if text != "team_app":
            refused(lambda text=text: house.names(text))  # type: ignore[misc]
        assert house.names("team", "app/d") == ["team/app/db"], text
    assert house.names("team_app") == []


def test_a_folder_is_found_alike_on_both_databases(house: SecretsHouse) -> None:
    names = ["a", "team", "team-x/db", "team/app", "team/app-x", "team/app/db", "team/apps", "team0", "z"]
    for name in names:
        house.put(name)
    house.secrets.was_read(str(PIPELINE), names)
    house.secrets.flush_reads(house.own)
    assert house.store.count(SecretRead, {}) == len(names)
    for limit in (1, 2, 100):
        assert house.names("team", limit=limit) == ["team", "team/app", "team/app-x", "team/app/db", "team/apps"]
        assert house.names("team/app", limit=limit) == ["team/app", "team/app/db"]
        assert house.names(limit=limit) == sorted(names)


def put_patiently(house: SecretsHouse, name: str) -> None:
    try:
        house.put(name)
    except Unavailable as error:
        if error.reason != "TOO_SLOW":  # half a day may have passed while it was being written
            raise
        put_patiently(house, name)


def rotated_under_use(house: SecretsHouse, rotations: int) -> None:
    """No read and no write fails while root keys are rotated."""
    names = [f"a/n{number}" for number in range(10)]
    for name in names:
        house.put(name)
    done, failed = threading.Event(), []

    def using(part: int) -> int:
        count = 0
        while not done.is_set() or count < 50:
            name = names[(count + part) % len(names)]
            try:
                if count % 10 == 9:
                    put_patiently(house, name)
                assert house.read(name).fields == FIELDS
            except (BrokerError, AssertionError) as error:
                failed.append((name, error))
            count += 1
            done.wait(0.002)  # the rate of use
        return count

    with ThreadPoolExecutor(4) as threads:
        users = [threads.submit(using, part) for part in range(4)]
        try:
            for _ in range(rotations):
                house.secrets.rotate_root(house.call("RotateRootKey"))
                house.work()
                house.clock.forward(hours=13)
        finally:
            done.set()
    assert failed == []
    assert sum(user.result() for user in users) >= 200
    house.work()
    house.clock.forward(hours=25)
    house.work()
    assert [root.version for root in house.store.page(RootKey, limit=99)] == [rotations + 1]
    assert all(house.read(name).fields == FIELDS for name in names)


def test_P23_no_read_and_no_write_fails_while_root_keys_are_rotated(house: SecretsHouse) -> None:
    rotated_under_use(house, ROTATIONS)


def test_two_replicas_serve_each_others_secrets_through_a_rotation(postgres: Postgres, tmp_path: Path) -> None:
    name = postgres.create_database()
    clock, hsm = Clock(), SoftwareHsm()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with (
        stored(postgres.url(name), tmp_path / "a", clock) as one,
        stored(postgres.url(name), tmp_path / "b", clock) as two,
    ):
        first, second = SecretsHouse(one, hsm, clock=clock), SecretsHouse(two, hsm, clock=clock)
        first.put("a/old")
        first.secrets.rotate_root(first.call("RotateRootKey"))
        first.put("a/new")
        second.put("a/other")  # it has not heard of the new root key yet
        assert second.read("a/new").fields == first.read("a/other").fields == FIELDS
        first.work()
        assert {row.root for row in one.page(SecretVersion, limit=9)} == {2}
        assert second.read("a/old").fields == FIELDS
        second.put("a/old", {"v": b"2"}, expected=1)
        with pytest.raises(WrongState):
            first.put("a/old", expected=1)
    postgres.drop_database(name)


def test_ST_01_no_value_is_in_any_file_of_the_database_or_the_journal(tmp_path: Path) -> None:
    canaries = [secrets.token_hex(16).encode() for _ in range(50)]
    with stored(f"sqlite:///{tmp_path / 'broker.db'}", tmp_path, Clock()) as store:
        house = SecretsHouse(store, SoftwareHsm())
        for number, canary in enumerate(canaries):
            house.put(f"a/n{number}", {"f": canary, "g": canary})
            assert house.read(f"a/n{number}").fields["g"] == canary
        house.destroy("a/n0", 1)
        held = [file for file in tmp_path.rglob("*") if file.is_file()]
        content = b"".join(file.read_bytes() for file in held)
        assert len(held) >= 3
        assert b"a/n49" in content  # the write-ahead log is among what was looked at
        assert not [canary for canary in canaries if canary in content]


def test_a_real_token_wraps_rotates_and_destroys(hsm: KeysHsm, tmp_path: Path) -> None:
    with stored(f"sqlite:///{tmp_path / 'broker.db'}", tmp_path, Clock()) as store:
        house = SecretsHouse(store, hsm, keep=0, clock=Clock())
        for number in range(5):
            house.put(f"a/n{number}")
        [old] = store.page(RootKey, limit=9)
        assert house.read("a/n1").fields == FIELDS
        row = store.get(SecretVersion, "a/n1", 1)
        assert row is not None
        with pytest.raises(WrongState) as refused:
            house.sealing.open("a/n2", 1, row.root, row.data_key, row.sealed)
        assert refused.value.reason == "SECRET_DAMAGED"
        assert house.secrets.rotate_root(house.call("RotateRootKey")) == 2
        house.work()
        house.clock.forward(hours=25)
        house.work()
        assert [root.version for root in store.page(RootKey, limit=9)] == [2]
        assert all(house.read(f"a/n{number}").fields == FIELDS for number in range(5))
        house.sealing.use_roots({1: ref(old), 2: ref(store.page(RootKey, limit=9)[0])})
        with pytest.raises(WrongState) as gone:
            house.sealing.open("a/n1", 1, row.root, row.data_key, row.sealed)
        assert gone.value.reason == "ROOT_KEY_MISSING"
