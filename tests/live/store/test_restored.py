"""An older database under a newer journal: noticed at start, while running and by the doctor; accepted knowingly."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from broker import acceptance
from broker.config import load
from broker.core.entries import encode_head
from broker.core.errors import WrongState
from broker.core.model import AuditHead, Key
from broker.store.config import StoreConfig
from broker.store.restored import logins, newest_heads
from broker.store.sql import SqlStore
from tests.contracts.store.places import database, place, store
from tests.contracts.store.samples import (
    ROW_KEY,
    SIGNER,
    T0,
    HeadSigner,
    config,
    entry,
    head,
    key,
    now,
    opened,
    put,
    read_journal,
)
from tests.fakes.refusals import refused
from tests.servers.databases import create_database, migrate
from tests.servers.dba import Dba
from tests.servers.fetch_load import REFERENCES, furnish
from tests.servers.issuer import issuing
from tests.servers.live import Live
from tests.servers.live_jobs import Job
from tests.servers.postgres import Postgres

__all__ = ["database", "place", "store"]  # fixtures


def sign(store: SqlStore) -> AuditHead:
    (signed,) = SIGNER.sign_due(store)
    return signed


@pytest.fixture(params=["sqlite", "postgresql"])
def restored(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[StoreConfig, AuditHead]]:
    """A whole database of yesterday under the journal of today, and the head that it has forgotten."""
    server: Postgres = request.getfixturevalue("postgres")
    name = create_database(server) if request.param == "postgresql" else ""
    file = tmp_path / "broker.db"
    place = config(server.url(name) if name else f"sqlite:///{file}", tmp_path)
    migrate(place)
    with opened(place) as store:
        put(store, key())
        sign(store)
    backup = server.create_database(name) if name else str(shutil.copy(file, tmp_path / "backup.db"))
    with opened(place) as store:
        put(store, key("since"))
        newest = sign(store)
    if name:
        server.drop_database(name)
        with server.connect() as connection:
            connection.execute(f"ALTER DATABASE {backup} RENAME TO {name}".encode())
    else:
        shutil.move(backup, file)
    yield place, newest
    if name:
        server.drop_database(name)


def test_ST_04_an_older_database_is_refused_until_it_is_accepted(restored: tuple[StoreConfig, AuditHead]) -> None:
    place, newest = restored
    for _ in range(2):  # a refused start leaves nothing behind that would let the next one pass
        sentence = refused(lambda: SqlStore(place, ROW_KEY, now, SIGNER.genuine), WrongState, "STORE_RESTORED").message
        assert newest.chain in sentence
        assert "accept-restore" in sentence
    store = SqlStore(place, ROW_KEY, now, SIGNER.genuine, accept_restored=True)
    try:
        assert store.forgotten() == [newest]
        assert store.get(Key, "since") is None
        refused(store.check, WrongState, "STORE_RESTORED")
        store.make_good()
        with store.write(entry()) as write:
            write.add(*store.forgotten())
        assert store.forgotten() == []
        store.check()
    finally:
        store.close()
    with opened(place) as again:
        again.check()


def test_ST_04_what_is_accepted_is_accepted_for_every_worker_and_not_before_all_is_done(place: StoreConfig) -> None:
    dba, beside = Dba(place), place.model_copy(update={"replica": "other"})
    with opened(place) as store:
        put(store, key())
    before = {table: dba.rows(table) for table in ("keys", "ledger")}
    with opened(beside) as store:
        put(store, key("one"))
    with opened(beside) as store:
        put(store, key("two"))
    for table, rows in before.items():
        dba.run(f"DELETE FROM {table}")  # noqa: S608 (the tests' own)
        for row in rows:
            dba.insert(table, row)
    refused(lambda: SqlStore(beside, ROW_KEY, now, SIGNER.genuine), WrongState, "STORE_RESTORED")
    for settles in (False, True):
        store = SqlStore(place, ROW_KEY, now, SIGNER.genuine, accept_restored=True, passing=True, role="accept")
        assert store.doubted
        put(store, key(f"done-{settles}"))
        if settles:
            store.make_good()
            put(store, key("last"))
        store.close()
        if not settles:
            refused(lambda: SqlStore(beside, ROW_KEY, now, SIGNER.genuine), WrongState, "STORE_RESTORED")
    for each in (beside, place):
        with opened(each) as store:
            assert store.findings == []
            put(store, key(f"after-{each.replica}"))
            store.check()


def test_ST_04_starts_that_change_nothing_do_not_hide_how_far_the_database_was(place: StoreConfig) -> None:
    dba = Dba(place)
    with opened(place) as store:
        put(store, key())
    before = {table: dba.rows(table) for table in ("keys", "ledger")}
    with opened(place) as store:
        put(store, key("since"))
        put(store, key("then"))
    for _ in range(12):
        with opened(place):
            pass
    for table, rows in before.items():
        dba.run(f"DELETE FROM {table}")  # noqa: S608 (the tests' own)
        for row in rows:
            dba.insert(table, row)
    refused(lambda: SqlStore(place, ROW_KEY, now, SIGNER.genuine), WrongState, "STORE_RESTORED")


def test_ST_04_a_database_that_goes_back_while_open_is_not_covered_up(store: SqlStore, place: StoreConfig) -> None:
    signed = sign(store)
    put(store, key())
    store.check()
    Dba(place).run("DELETE FROM audit_heads")
    refused(store.check, WrongState, "STORE_RESTORED")
    refused(lambda: sign(store), WrongState, "STORE_RESTORED")
    assert newest_heads(place.journal, SIGNER.genuine) == [signed]


def test_ST_04_another_record_in_the_place_of_the_signed_one_is_another_history(
    store: SqlStore, place: StoreConfig
) -> None:
    sign(store)
    Dba(place).run("UPDATE audit_heads SET hash = ?", ["0" * 64])
    refused(store.check, WrongState, "STORE_RESTORED")
    assert place.journal.is_dir()


def test_FT_01_records_after_the_last_head_and_a_torn_line_are_no_restored_database(place: StoreConfig) -> None:
    with opened(place) as store:
        signed = sign(store)
        for number in range(50):
            put(store, key(f"k{number}"))
    (journal,) = place.journal.glob("*.jsonl")
    with journal.open("ab") as file:
        file.write(b'{"kind":"head","chain":"torn"')
    assert newest_heads(place.journal, SIGNER.genuine) == [signed]
    with opened(place):
        pass
    with opened(place) as store:  # the chain before this one has no head of its own
        store.check()


def test_damaged_logins_are_passed_over(tmp_path: Path) -> None:
    name = "broker-20300101T000000000000Z-0123456789abcdef.000001.jsonl"
    good = '{"rpc":"SessionService/Login","outcome":"ok","facts":{"issuer":"i","token_id":"t"}}'
    damaged = good.replace('"outcome":"ok",', "")
    (tmp_path / name).write_text(f"{damaged}\n{good}\n[{good}]\n")
    assert list(logins(tmp_path, T0 - timedelta(days=3650))) == [("i", "t")]


def forged(place: StoreConfig, chain: str, key: HeadSigner) -> None:
    """A chain in the folder whose head claims to be signed; it is newer than any."""
    made = key.sign(AuditHead(chain=chain, sequence=7, hash="0" * 64, signed_at=T0, signature=b""))
    line, _ = encode_head(made, 8, "1" * 64)
    (place.journal / f"{chain}.000001.jsonl").write_bytes(line + b"\n")


def test_AU_04_a_head_that_is_not_signed_keeps_no_broker_from_starting(place: StoreConfig) -> None:
    with opened(place) as store:
        signed = sign(store)
    for number in range(12):  # more than the files that are looked at, all newer
        forged(place, f"broker-29990101T0000000000{number:02d}Z-0123456789abcdef", HeadSigner())
    with opened(place) as store:
        store.check()
        assert newest_heads(place.journal, SIGNER.genuine) == [signed]
        assert store.doubts() == ["Audit chains that nothing vouches for are in the journal's folder: 12."]


def test_ST_04_the_chain_before_is_known_from_the_database_when_its_files_are_gone(place: StoreConfig) -> None:
    with opened(place) as store:
        signed = sign(store)
    for path in place.journal.iterdir():
        path.unlink()
    with opened(place):
        pass
    ((opening, *_),) = read_journal(place.journal).values()
    assert opening["facts"] == {
        "former_chain": signed.chain, "former_sequence": 1, "former_hash": signed.hash, "former_strays": 0,
    }  # fmt: skip


def test_AU_04_rows_of_heads_that_nobody_signed_vouch_for_nothing(place: StoreConfig) -> None:
    with opened(place) as store:
        signed = sign(store)
        with store.write(entry()) as write:
            for number in range(5):
                chain = f"broker-29990101T00000000000{number}Z-0123456789abcdef"
                write.add(HeadSigner().sign(replace(signed, chain=chain)))
    with opened(place):
        pass
    links = [chain[0]["facts"].get("former_chain") for chain in read_journal(place.journal).values()]
    assert set(links) == {None, signed.chain}


def test_a_head_is_found_over_blocks_and_damaged_lines(place: StoreConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    # Patched: a journal of many real blocks would be megabytes of records.
    monkeypatch.setattr("broker.store.lines.BLOCK", 97)
    with opened(place) as store:
        signed = sign(store)
        put(store, key())
    (journal,) = place.journal.glob("*.jsonl")
    with journal.open("ab") as file:
        file.write(b'\n{"kind":"head","chain":7}\n[]"kind":"head"\n')
    for worker in ("broker-w1", "broker-w2"):
        with opened(place.model_copy(update={"replica": worker})):
            pass
    with opened(place):
        pass
    assert newest_heads(place.journal, SIGNER.genuine) == [signed]
    assert newest_heads(place.journal / "absent", SIGNER.genuine) == []


def test_ST_04_a_head_that_the_database_refused_is_not_in_the_journal(store: SqlStore, place: StoreConfig) -> None:
    Dba(place).run("ALTER TABLE audit_heads RENAME TO elsewhere")
    try:
        with pytest.raises(Exception, match="database"):
            store.save_head(head(store.heads()[0].chain))
        assert newest_heads(place.journal, SIGNER.genuine) == []
    finally:
        Dba(place).run("ALTER TABLE elsewhere RENAME TO audit_heads")


def copy_of(live: Live) -> Path:
    """A backup of the database of a broker that is stopped."""
    return Path(shutil.copy(live.folder / "broker.db", live.folder.parent / "backup.db"))


def leaves_nothing_unsigned(live: Live) -> None:
    """Neither the doctor nor an acceptance of nothing begins an audit chain; a real one is gone on from by a worker."""
    nothing = live.command("accept-restore", "--config", str(live.config))
    assert (nothing.returncode, "nothing was changed" in nothing.stdout) == (0, True)
    live.command("check", "--config", str(live.config))
    live.verify()
    alone = load(live.config)
    two = alone.model_copy(update={"server": alone.server.model_copy(update={"workers": 2})})
    assert (acceptance.place(alone), acceptance.place(two).replica) == (alone.store, "broker-w1")


def test_ST_04_a_broker_starts_on_an_older_database_only_after_everything_it_forgot_is_over(tmp_path: Path) -> None:
    with issuing(tmp_path / "issuer") as ci:
        live = Live(tmp_path / "broker", "--allow-issuer", ci.host)
        try:
            live.start()
            furnish(live, ci)
            job, tokens = Job(live), [ci.token(), ci.token()]
            ended = job.ask("FetchSecrets", tokens[0], references=REFERENCES).session_token
            job.close()
            assert live.terminate() == 0
            backup = copy_of(live)
            live.start()
            job = Job(live)
            job.ask("EndSession", ended)
            job.ask("FetchSecrets", tokens[1], references=REFERENCES)
            job.close()
            assert live.terminate() == 0
            shutil.copy(backup, live.folder / "broker.db")
            for words in (["serve", "--config"], ["check", "--config"], ["accept-restore", "--config"]):
                done = live.command(*words, str(live.config))
                if words[0] == "accept-restore":
                    assert done.returncode == 0, done.stderr
                    assert "1 sessions were ended and 1 identity tokens" in done.stdout
                else:
                    assert done.returncode == (1 if words[0] == "serve" else 10)
                    assert "older than this host's audit journal" in done.stdout + done.stderr
            live.start()
            job = Job(live)
            assert job.why_not("FetchSecrets", ended, references=REFERENCES) == "SESSION_INVALID"
            assert [job.why_not("Login", token) for token in tokens] == ["TOKEN_REPLAYED"] * 2
            job.close()
            assert live.terminate() == 0
            leaves_nothing_unsigned(live)
        finally:
            live.close()


@pytest.mark.parametrize("passing", [False, True])
def test_a_passing_process_begins_no_audit_chain_before_it_records(place: StoreConfig, *, passing: bool) -> None:
    migrate(place)
    store = SqlStore(place, ROW_KEY, now, SIGNER.genuine, passing=passing)
    try:
        assert len(list(place.journal.glob("*.jsonl"))) == (0 if passing else 1)
        put(store, key())
        assert len(list(place.journal.glob("*.jsonl"))) == 1
    finally:
        store.close()


def test_ST_04_a_running_broker_ends_when_its_database_goes_back(tmp_path: Path) -> None:
    live = Live(tmp_path / "broker")
    try:
        live.start()
        with live.client() as admin:
            admin.ask("SignAuditHead")
        assert live.process is not None
        database = sqlite3.connect(live.folder / "broker.db")
        with database:
            database.execute("DELETE FROM audit_heads")
        database.close()
        assert live.process.wait(200) == 1
        assert "STORE_RESTORED" in live.said
        assert "Traceback" not in live.said
    finally:
        live.close()
