"""The audit journal: what is in its files is whole, what is not in them was refused, and both in time."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from broker.core.errors import Unavailable, WrongState
from broker.store import journal as journal_module
from broker.store.chain import Tail
from broker.store.journal import Journal
from broker.store.waits import USUAL
from tests.contracts.store.samples import T0, calls, entry, filled, read_journal, start
from tests.fakes.refusals import refused
from tests.servers.patience import PATIENCE


class Faults:
    """Stands between the journal and the system's write and fdatasync; off until a test turns one on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.write_error = 0  # errno; half of what is written gets to the disk
        self.sync_error = 0
        self.cut_error = 0
        self.blocked = threading.Event()
        self.blocked.set()
        self.entered = threading.Event()
        write, sync, cut = os.write, os.fdatasync, os.ftruncate

        def faulty_write(file: int, content: memoryview) -> int:
            if not self.write_error:
                return write(file, content)
            if len(content) > 100:
                return write(file, content[: len(content) // 2])
            raise OSError(self.write_error, "injected")

        def faulty_sync(file: int) -> None:
            self.entered.set()
            self.blocked.wait(100)
            if self.sync_error:
                raise OSError(self.sync_error, "injected")
            sync(file)

        def faulty_cut(file: int, size: int) -> None:
            if self.cut_error:
                raise OSError(self.cut_error, "injected")
            cut(file, size)

        # Patched: no file system here fails, and hangs, at the call that a test chooses.
        monkeypatch.setattr("broker.store.chain.os.write", faulty_write)
        # As above.
        monkeypatch.setattr("broker.store.chain.os.fdatasync", faulty_sync)
        # As above.
        monkeypatch.setattr("broker.store.chain.os.ftruncate", faulty_cut)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    found = Faults(monkeypatch)
    yield found
    found.blocked.set()


@pytest.fixture
def journal(faults: Faults, folder: Path) -> Iterator[Journal]:
    found = start(folder)
    yield found
    faults.blocked.set()
    found.close()


def refused_in_time(attempt: Callable[[], object]) -> str:
    """The sentence of a refusal that came in time."""
    began = time.monotonic()
    error = refused(attempt, Unavailable, "AUDIT_UNAVAILABLE")
    assert time.monotonic() - began < 50  # what hangs here does so for longer
    return error.message


def test_lines_follow_the_documented_format(folder: Path) -> None:
    lines = filled(folder, 2)
    records = [json.loads(line) for line in lines]
    assert [record["seq"] for record in records] == [1, 2, 3]
    assert records[0]["prev"] == "0" * 64
    assert records[2]["prev"] == hashlib.sha256(lines[1]).hexdigest()
    assert records[0]["resource"] == f"audit/{records[0]['chain']}"
    assert records[1]["time"] == "2026-11-23T05:00:00.123456+00:00"


def test_files_rotate_and_the_chain_goes_on(folder: Path) -> None:
    filled(folder, 40, file_bytes=4096)
    (name,) = read_journal(folder)
    files = sorted(path.name for path in folder.iterdir())
    assert files == [f"{name}.{number:06d}.jsonl" for number in range(1, len(files) + 1)]
    assert len(files) > 3
    assert max(path.stat().st_size for path in folder.iterdir()) <= 4096
    assert calls(folder) == [str(number) for number in range(40)]


def test_concurrent_appends_share_one_sync(folder: Path, journal: Journal, faults: Faults) -> None:
    faults.blocked.clear()
    faults.entered.clear()
    with ThreadPoolExecutor(16) as pool:
        done = [pool.submit(journal.append, entry(str(number))) for number in range(16)]
        assert faults.entered.wait(60)
        faults.blocked.set()
        for one in done:
            one.result()
    assert sorted(calls(folder), key=int) == [str(number) for number in range(16)]


def opening(folder: Path, old: str) -> dict[str, Any]:
    """The facts of the first record of the other chain."""
    (found,) = (chain[0]["facts"] for name, chain in read_journal(folder).items() if name != old)
    return cast(dict[str, Any], found)


def test_a_new_start_names_what_is_vouched_for_and_says_what_lies_behind_it(folder: Path) -> None:
    lines = filled(folder, 3)
    (old,) = read_journal(folder)
    second, last = (hashlib.sha256(lines[place]).hexdigest() for place in (1, 3))
    start(folder, lambda: T0 + timedelta(microseconds=1), vouched=Tail(old, 2, second, 0)).close()
    assert opening(folder, old) == {
        "former_chain": old, "former_sequence": 2, "former_hash": second,
        "former_end": 4, "former_end_hash": last, "former_strays": 0,
    }  # fmt: skip


def test_AU_02_a_new_start_names_nothing_that_is_not_vouched_for(folder: Path) -> None:
    filled(folder, 3)
    (old,) = read_journal(folder)
    journal = start(folder, lambda: T0 + timedelta(microseconds=1))
    journal.close()
    assert opening(folder, old) == {"former_strays": 1}
    assert len(journal.former.doubts) == 1


@pytest.mark.parametrize("tail", [b"", b'{"torn":', b"garbage\n", b"[1]\n", b'{"seq":true}\n'])
def test_FT_42_a_start_after_a_power_cut_leaves_the_old_files_alone(folder: Path, tail: bytes) -> None:
    lines = filled(folder, 2)
    (old,) = folder.iterdir()
    with old.open("ab") as file:
        file.write(tail)
    before = old.read_bytes()
    vouched = Tail(old.name.split(".")[0], 3, hashlib.sha256(lines[-1]).hexdigest(), 0)
    start(folder, lambda: T0 + timedelta(1), vouched=vouched).close()
    assert old.read_bytes() == before
    (new,) = set(folder.iterdir()) - {old}
    facts = json.loads(new.read_bytes())["facts"]
    whole = tail.removesuffix(b"\n") if tail.endswith(b"\n") else lines[-1]
    assert (facts["former_sequence"], facts["former_hash"]) == (3, vouched.hash)
    assert facts["former_end_hash"] == hashlib.sha256(whole).hexdigest()
    assert facts["former_end"] == (-1 if tail.endswith(b"\n") else 3)
    torn = tail if tail and not tail.endswith(b"\n") else b""
    assert facts.get("former_torn", 0) == len(torn)
    assert facts.get("former_torn_hash", "") == (hashlib.sha256(torn).hexdigest() if torn else "")


HOSTILE_TAILS = [
    b"[" * 9000,
    b'{"seq":' * 500,
    b'{"seq":' + b"9" * 8000 + b"}",
    b'{"seq":"\xff"}',
    b"\0" * 5000,
    b"",
    b"\r",
]


@pytest.mark.parametrize("tail", HOSTILE_TAILS, ids=lambda tail: repr(tail[:8]))
def test_AU_12_a_start_reads_a_hostile_former_journal(folder: Path, tail: bytes) -> None:
    filled(folder, 2)
    (old,) = folder.iterdir()
    with old.open("ab") as file:
        file.write(tail + b"\n")
    name = old.name.split(".")[0]
    start(folder, lambda: T0 + timedelta(1), vouched=Tail(name, 3, "0" * 64, 0)).close()
    (new,) = set(folder.iterdir()) - {old}
    facts = json.loads(new.read_bytes())["facts"]
    assert (facts["former_chain"], facts["former_end"]) == (name, -1)


@pytest.mark.parametrize("what", ["link", "pipe", "folder", "nothing"])
def test_AU_12_a_start_is_not_held_up_by_what_stands_in_the_place_of_a_journal(folder: Path, what: str) -> None:
    filled(folder, 2)
    (old,) = folder.iterdir()
    name = old.name.split(".")[0]
    old.rename(folder.parent / "away")
    if what == "link":
        old.symlink_to(folder.parent / "away")
    elif what == "pipe":
        os.mkfifo(old)
    elif what == "folder":
        old.mkdir()
    start(folder, lambda: T0 + timedelta(1), vouched=Tail(name, 3, "0" * 64, 0)).close()
    facts = json.loads(max(folder.iterdir()).read_bytes())["facts"]
    assert "former_end" not in facts
    assert facts["former_chain"] == name


def test_FT_42_every_prefix_of_a_file_is_a_journal_up_to_a_torn_line(folder: Path) -> None:
    filled(folder, 3)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        found = read_journal(folder)
        assert sum(map(len, found.values())) == whole[:length].count(b"\n")


# -- what goes wrong below it ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("where", ["write_error", "sync_error"])
def test_AU_10_a_failing_disk_refuses_at_once_leaves_no_torn_line_and_heals(
    folder: Path, journal: Journal, faults: Faults, where: str, error: int
) -> None:
    journal.append(entry("before"))
    setattr(faults, where, error)
    assert os.strerror(error) in refused_in_time(lambda: journal.append(entry("lost" * 20)))
    setattr(faults, where, 0)
    journal.append(entry("after"))
    assert {call for call in calls(folder) if "lost" not in call} == {"before", "after"}


def test_AU_10_a_line_that_cannot_be_taken_back_ends_its_chain(folder: Path, journal: Journal, faults: Faults) -> None:
    journal.append(entry("before"))
    (old,) = journal.heads()
    faults.write_error = faults.cut_error = errno.EIO
    refused_in_time(lambda: journal.append(entry("lost")))
    refused_in_time(lambda: journal.append(entry("lost")))
    faults.write_error = faults.cut_error = 0
    journal.append(entry("after"))
    whole = [path for path in folder.iterdir() if path.read_bytes().endswith(b"\n")]
    torn = [path for path in folder.iterdir() if path not in whole and path.stat().st_size]
    assert torn
    assert {chain["call"] for name in read_journal(folder).values() for chain in name} == {"", "before", "after"}
    facts = next(chain[0]["facts"] for chain in read_journal(folder).values() if chain[0]["chain"] != old.chain)
    assert (facts["former_chain"], facts["former_sequence"], facts["former_hash"]) == (old.chain, 2, old.hash)
    assert facts["former_torn"] > 0
    due = {head.chain: head for head in journal.heads()}
    assert due[old.chain] == old  # what was durable in the chain that was left is still signed
    assert len(due) == 2


@pytest.mark.parametrize("kept", ["removed", "longer", "shorter"])
def test_AU_10_a_file_that_others_change_ends_its_chain(folder: Path, journal: Journal, kept: str) -> None:
    journal.append(entry("before"))
    (file,) = folder.iterdir()
    if kept == "removed":
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size + (1 if kept == "longer" else -1))
    refused_in_time(lambda: journal.append(entry("lost")))
    journal.append(entry("after"))
    newest = max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    records = [json.loads(line) for line in newest.read_bytes().splitlines()]
    assert [record["call"] for record in records] == ["", "after"]
    facts = records[0]["facts"]  # what the process wrote, whatever has become of it
    assert (facts["former_sequence"], facts["former_end"], facts["former_hash"]) == (2, 2, facts["former_end_hash"])


def test_a_chain_that_has_ended_takes_heads_and_nothing_else(folder: Path, journal: Journal) -> None:
    journal.append(entry("before"))
    journal.finish()
    assert "closed" in refused_in_time(lambda: journal.append(entry("after")))
    (due,) = journal.heads()
    journal.append(due)
    journal.signed(due)
    (chain,) = read_journal(folder).values()
    assert [(record["kind"], record.get("resource")) for record in chain[2:]] == [
        ("entry", "audit/ended"), ("head", None),
    ]  # fmt: skip
    assert journal.heads() == []


def test_a_chain_that_was_not_begun_has_no_end(folder: Path) -> None:
    journal = Journal(folder, "broker", lambda: T0, 1 << 20, patience=PATIENCE, begin=False)
    journal.finish()
    journal.close()
    assert list(folder.iterdir()) == []


@pytest.fixture
def hung(folder: Path, faults: Faults) -> Iterator[Journal]:
    """One that soon gives up, and a sink that hangs."""
    found = start(folder, patience=2.0)
    faults.blocked.clear()
    faults.entered.clear()
    yield found
    faults.blocked.set()
    found.close()


def test_AU_10_a_sink_that_hangs_is_a_refusal_in_time(folder: Path, hung: Journal, faults: Faults) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda name: "in time" in refused_in_time(lambda: hung.append(entry(name))), ["hung"] * 8))
    refused_in_time(hung.check)
    faults.blocked.set()
    hung.append(entry("after"))
    assert calls(folder)[-1] == "after"
    assert len(calls(folder)) < 9  # what had given up before its turn was not written


def test_AU_10_within_the_patience_nobody_is_refused(folder: Path, journal: Journal, faults: Faults) -> None:
    faults.blocked.clear()
    threading.Timer(1.5 * USUAL, faults.blocked.set).start()  # by default it would be refused by then
    journal.append(entry("slow"))
    assert calls(folder) == ["slow"]


def test_AU_10_what_waits_for_a_sink_that_hangs_is_bounded(
    hung: Journal, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Patched: so many threads as may wait there would have to be started.
    monkeypatch.setattr(journal_module, "MAX_WAITING", 2)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(refused_in_time, lambda: hung.append(entry()))
        assert faults.entered.wait(60)
        for _ in range(2):
            assert "in time" in refused_in_time(lambda: hung.append(entry()))
        assert "too much" in refused_in_time(lambda: hung.append(entry()))
        first.result()


def test_AU_10_a_close_does_not_wait_for_a_sink_that_hangs(hung: Journal) -> None:
    assert "in time" in refused_in_time(lambda: hung.append(entry()))
    began = time.monotonic()
    hung.close()
    assert time.monotonic() - began < 50
    assert "closed" in refused_in_time(lambda: hung.append(entry()))


def test_FT_10_no_journal_no_start(tmp_path: Path, faults: Faults) -> None:
    faults.sync_error = errno.ENOSPC
    refused_in_time(lambda: start(tmp_path / "journal"))
    assert list((tmp_path / "journal").iterdir()) == []


def test_FT_12_a_check_sees_a_volume_that_turned_read_only(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    journal.check()
    real = os.statvfs("/")
    fields = {name: getattr(real, name) for name in dir(real) if name.startswith("f_")}
    # Patched: to mount a volume and turn it read-only takes root and a kernel that lets it.
    monkeypatch.setattr("os.statvfs", lambda _: type("Volume", (), {**fields, "f_flag": os.ST_RDONLY}))
    assert "Read-only" in refused_in_time(journal.check)
    journal.append(entry())


def test_an_entry_that_cannot_be_encoded_harms_nobody_else(folder: Path, journal: Journal) -> None:
    with pytest.raises(AttributeError):
        journal.append(entry(time="yesterday"))
    journal.append(entry("after"))
    assert calls(folder) == ["after"]


@pytest.mark.parametrize("umask", [0, 0o777])
def test_ST_07_the_journal_is_private_under_any_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        filled(tmp_path / "journal", 1)
    finally:
        os.umask(before)
    assert (tmp_path / "journal").stat().st_mode & 0o7777 == 0o700
    assert {path.stat().st_mode & 0o7777 for path in (tmp_path / "journal").iterdir()} == {0o600}


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701, 0o770])
def test_ST_07_a_journal_folder_that_others_may_enter_is_refused(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(WrongState) as found:
        start(folder)
    assert found.value.reason == "FILE_NOT_PRIVATE"
    assert "chmod 700" in found.value.message


def test_ST_07_a_journal_folder_behind_a_link_is_refused(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WrongState):
        start(folder)
