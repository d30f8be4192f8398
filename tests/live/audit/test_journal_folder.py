"""Writing into the journal's folder without a key: all that an attacker can do there is found, and stays found.

The heads are kept elsewhere, as the book says. Before a restart the verifier finds it; after one the broker has begun a
chain on top of it, and has signed that, and the verifier finds it still.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from broker_cli.audit import signature_check
from broker_cli.chain import Kept, Verdict, Verifier

from broker.core.entries import encode, encode_head
from broker.core.errors import Unavailable
from broker.core.model import AuditHead
from broker.store.config import StoreConfig
from broker.store.sql import SqlStore
from tests.contracts.store.samples import ROW_KEY, SIGNER, T0, HeadSigner, config, entry, read_journal
from tests.servers.databases import migrate

LONG = "x" * 1000
RECORDS, FEW = 60, 3
"""Sixty of more than a kilobyte each, so that a chain has two files; few, where it only matters that a process ran."""


@dataclass
class House:
    """A broker's database and journal; each run is one process."""

    place: StoreConfig
    kept: list[AuditHead] = field(default_factory=list)
    runs: int = 0

    @contextmanager
    def run(self, *, drained: bool) -> Iterator[SqlStore]:
        """A process that lives for a while; ``drained`` ends in order, else it is killed with two records unsigned."""
        self.runs += 1
        moment = T0 + timedelta(hours=self.runs)
        store = SqlStore(self.place, ROW_KEY, lambda: moment, SIGNER.genuine, passing=True)
        try:
            store.check()
            self.kept += SIGNER.sign_due(store)
            yield store
            self.kept += SIGNER.sign_due(store)
            if drained:
                store.finish()
                self.kept += SIGNER.sign_due(store)
            else:
                store.record(entry("unsigned-1", time=moment))
                store.record(entry("unsigned-2", time=moment))
        finally:
            store.close()

    def live(self, records: int = RECORDS, *, drained: bool = True) -> None:
        """A run that records."""
        with self.run(drained=drained) as store:
            for number in range(records):
                store.record(entry(str(number), time=T0 + timedelta(hours=self.runs), peer=LONG, request_id=LONG))

    def verify(self, *known_torn: str) -> Verdict:
        heads = [
            Kept(
                chain=head.chain, sequence=head.sequence, hash=head.hash, signature=head.signature,
                time=head.signed_at.isoformat(timespec="microseconds"),
            )
            for head in self.kept
        ]  # fmt: skip
        return Verifier(signature_check(SIGNER.pem), heads, known_torn=known_torn).run(self.files)

    @property
    def files(self) -> list[Path]:
        return sorted(self.place.journal.glob("*.jsonl"))

    @property
    def newest(self) -> list[Path]:
        """The files of the newest chain."""
        chain = self.kept[-1].chain
        return [path for path in self.files if path.name.startswith(chain)]


def found(verdict: Verdict) -> set[str]:
    return {finding.reason for finding in verdict.findings}


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> House:
    """One that has recorded, for every test to copy."""
    made = _house(tmp_path_factory.mktemp("lived"))
    migrate(made.place)
    made.live()
    return made


@pytest.fixture(scope="module")
def ended(lived: House, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, House]:
    """Such whose second process has ended in order, and (False) was killed with two records unsigned."""
    made = {drained: copy_of(lived, tmp_path_factory.mktemp("ended")) for drained in (True, False)}
    for drained, house in made.items():
        house.live(drained=drained)
        assert house.verify().intact
    return made


@pytest.fixture(scope="module", params=[True, False], ids=["drained", "killed"])
def followed(
    request: pytest.FixtureRequest, ended: dict[bool, House], tmp_path_factory: pytest.TempPathFactory
) -> House:
    """One whose second process has ended so, and was followed by a third."""
    made = copy_of(ended[request.param], tmp_path_factory.mktemp("followed"))
    made.live()
    verdict = made.verify()
    assert verdict.intact
    assert [note.reason for note in verdict.notes] == ([] if request.param else ["TAIL_UNSIGNED"])
    return made


@pytest.fixture
def house(lived: House, tmp_path: Path) -> House:
    return copy_of(lived, tmp_path)


def copy_of(other: House, folder: Path) -> House:
    shutil.copytree(other.place.journal.parent, folder, dirs_exist_ok=True)
    made = _house(folder)
    made.kept, made.runs = list(other.kept), other.runs
    return made


def _house(folder: Path) -> House:
    return House(config(f"sqlite:///{folder}/broker.db", folder, journal_file_bytes=64 * 1024))


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()


def write(path: Path, lines: list[bytes]) -> None:
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def forged(chain: str, sequence: int, previous: str) -> bytes:
    line, _ = encode(
        entry("forged", principal="operator/mallory", time=T0 + timedelta(hours=9)), chain, sequence, previous
    )
    return line


def last_of(path: Path) -> tuple[str, int, str]:
    """(chain, sequence, hash) of a file's last line."""
    line = lines_of(path)[-1]
    record = json.loads(line)
    return record["chain"], record["seq"], sha256(line).hexdigest()


INVENTED = "broker-29990101T000000000000Z-0123456789abcdef"


def invent(house: House, count: int = 3, *, head: AuditHead | None = None) -> None:
    """A chain of somebody's own making, newer than any, that continues the last one as a genuine one would."""
    chain, sequence, digest = last_of(house.newest[-1])
    facts: dict[str, str | int] = {"former_chain": chain, "former_sequence": sequence, "former_hash": digest}
    lines, previous = [], "0" * 64
    for number in range(1, count + 1):
        made = entry("forged", principal="operator/mallory", rpc="-", resource=f"audit/{INVENTED}", facts=facts)
        line, previous = encode(made if number == 1 else entry("forged"), INVENTED, number, previous)
        lines.append(line)
    if head is not None:
        lines.append(encode_head(head, count + 1, previous)[0])
    write(house.place.journal / f"{INVENTED}.000001.jsonl", lines)


def invent_signed(house: House) -> None:
    invent(
        house, head=HeadSigner().sign(AuditHead(chain=INVENTED, sequence=1, hash="0" * 64, signed_at=T0, signature=b""))
    )


def invent_with_a_genuine_head(house: House) -> None:
    invent(house, head=house.kept[0])


def invent_one_deed(house: House) -> None:
    write(house.place.journal / f"{INVENTED}.000001.jsonl", [forged(INVENTED, 1, "0" * 64)])


def append(house: House) -> None:
    path = house.newest[-1]
    chain, sequence, digest = last_of(path)
    write(path, [*lines_of(path), forged(chain, sequence + 1, digest)])


def append_in_a_new_file(house: House) -> None:
    path = house.newest[-1]
    chain, sequence, digest = last_of(path)
    write(path.with_name(f"{chain}.000099.jsonl"), [forged(chain, sequence + 1, digest)])


def change(house: House) -> None:
    path = house.newest[0]
    path.write_bytes(path.read_bytes().replace(b"operator", b"0perator", 1))


def change_in_the_middle(house: House) -> None:
    lines = lines_of(house.newest[-1])
    lines[1] = lines[1].replace(b'"outcome":"ok"', b'"outcome":"no"')
    write(house.newest[-1], lines)


def reorder_lines(house: House) -> None:
    lines = lines_of(house.newest[0])
    lines[2], lines[3] = lines[3], lines[2]
    write(house.newest[0], lines)


def swap_files(house: House) -> None:
    first, second = house.newest[:2]
    aside = first.with_suffix(".aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def rename_to_another_chain(house: House) -> None:
    path = house.newest[-1]
    path.rename(path.with_name(f"{INVENTED}.000001.jsonl"))


def remove_first_file(house: House) -> None:
    house.newest[0].unlink()


def remove_last_file(house: House) -> None:
    house.newest[-1].unlink()


def remove_chain(house: House) -> None:
    for path in house.newest:
        path.unlink()


def link_file(house: House) -> None:
    path = house.newest[-1]
    os.link(path, path.with_name(f"{INVENTED}.000001.jsonl"))


def copy_file(house: House) -> None:
    path = house.newest[0]
    shutil.copy(path, path.with_name(path.name.replace("000001", "000077")))


def replace_by_an_older_copy(house: House) -> None:
    """The file as it was two heads ago."""
    path = house.newest[-1]
    write(path, lines_of(path)[:-5])


def foreign_head(house: House) -> None:
    """A head of another chain, genuine, at the end of this one."""
    path = house.newest[-1]
    _, sequence, digest = last_of(path)
    write(path, [*lines_of(path), encode_head(house.kept[0], sequence + 1, digest)[0]])


def cut_within_a_line(house: House) -> None:
    path = house.newest[-1]
    path.write_bytes(path.read_bytes()[:-20])


ANYWHERE: list[Callable[[House], None]] = [
    invent, invent_signed, invent_with_a_genuine_head, invent_one_deed, change, change_in_the_middle, reorder_lines,
    swap_files, rename_to_another_chain, remove_first_file, remove_last_file, remove_chain, link_file, copy_file,
    replace_by_an_older_copy, foreign_head, cut_within_a_line,
]  # fmt: skip
"""What is found whatever the process's end was like."""

BEHIND_AN_END: list[Callable[[House], None]] = [append, append_in_a_new_file]
"""What is found of a chain that its process has ended."""


@pytest.mark.parametrize("act", [*ANYWHERE, *BEHIND_AN_END], ids=lambda act: act.__name__)
def test_AU_02_what_is_done_to_the_folder_of_a_stopped_broker_is_found_for_ever(
    ended: dict[bool, House], tmp_path: Path, act: Callable[[House], None]
) -> None:
    house = copy_of(ended[True], tmp_path)
    act(house)
    before = found(house.verify())
    house.live(FEW)
    after = found(house.verify())
    assert before & after, (before, after)
    house.live(FEW)
    assert after <= found(house.verify())


@pytest.mark.parametrize("act", ANYWHERE, ids=lambda act: act.__name__)
def test_AU_02_what_is_done_to_the_folder_of_a_killed_broker_is_found_for_ever(
    ended: dict[bool, House], tmp_path: Path, act: Callable[[House], None]
) -> None:
    house = copy_of(ended[False], tmp_path)
    act(house)
    assert found(house.verify())
    house.live(FEW)
    assert (after := found(house.verify()))
    house.live(FEW)
    assert after <= found(house.verify())


@pytest.mark.parametrize("act", [*ANYWHERE, *BEHIND_AN_END], ids=lambda act: act.__name__)
def test_AU_02_what_is_done_to_a_chain_that_another_has_followed_is_found(
    followed: House, tmp_path: Path, act: Callable[[House], None]
) -> None:
    house = copy_of(followed, tmp_path)
    last, house.kept = house.kept, [head for head in house.kept if head.chain != house.kept[-1].chain]
    act(house)
    house.kept = last
    assert found(house.verify())


def test_AU_03_every_cut_of_a_chain_that_has_ended_is_found(house: House) -> None:
    house.live()
    path = house.newest[-1]
    whole = path.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == 10]
    for cut in [*ends[:-2], *range(len(whole) - 1, len(whole) - 1500, -37)]:
        path.write_bytes(whole[:cut])
        assert found(house.verify()), cut
    path.write_bytes(whole[: ends[-2]])  # the line of the last head alone: every record is there, and signed elsewhere
    assert house.verify().intact


def test_AU_03_a_cut_within_the_unsigned_tail_stays_a_finding_also_when_it_is_tidied_up(house: House) -> None:
    house.live(drained=False)
    path = house.newest[-1]
    chain = house.kept[-1].chain
    path.write_bytes(path.read_bytes()[:-20])
    torn = path.read_bytes()
    assert found(house.verify()) == {"LINE_TORN"}
    house.live()
    assert found(house.verify()) == {"LINE_TORN"}
    assert house.verify(chain).intact  # once it was looked into
    path.write_bytes(torn[: torn.rfind(b"\n") + 1])
    assert found(house.verify()) == {"LINE_TORN", "TORN_CHANGED"}
    path.write_bytes(torn + b"!")
    assert found(house.verify()) == {"LINE_TORN", "TORN_CHANGED"}
    assert not house.verify(chain).intact


def test_AU_03_an_unsigned_tail_is_told_and_can_be_neither_cut_nor_continued_later(house: House) -> None:
    house.live(drained=False)
    path = house.newest[-1]
    whole = path.read_bytes()
    house.live()
    (note,) = house.verify().notes
    assert (note.reason, note.chain) == ("TAIL_UNSIGNED", path.name.partition(".")[0])
    lines = whole.splitlines()
    write(path, lines[:-1])
    assert found(house.verify()) == {"CHAIN_CUT"}
    chain, sequence, digest = last_of(path)
    write(path, [*lines[:-1], forged(chain, sequence + 1, digest)])
    assert "FORMER_MISMATCH" in found(house.verify())
    path.write_bytes(whole)
    assert house.verify().intact


def test_AU_02_a_record_put_into_the_open_journal_is_not_taken_for_the_brokers(house: House) -> None:
    with house.run(drained=True) as store:
        store.record(entry("genuine", time=T0 + timedelta(hours=2)))
        path = house.newest[-1]
        append(house)
        with pytest.raises(Unavailable):
            store.record(entry("lost"))
        store.record(entry("after", time=T0 + timedelta(hours=2)))
    assert path.exists()
    assert found(house.verify()) == {"CHAIN_GREW"}
    house.live()
    assert found(house.verify()) == {"CHAIN_GREW"}


def test_FT_01_a_process_that_dies_between_its_first_record_and_its_head_leaves_nothing_that_counts(
    house: House,
) -> None:
    moment = T0 + timedelta(hours=2)
    store = SqlStore(house.place, ROW_KEY, lambda: moment, SIGNER.genuine)  # killed before anything was signed
    store.close()
    assert [note.reason for note in house.verify().notes] == ["STILLBORN"]
    house.runs = 2
    house.live()
    assert house.verify().intact
    newest = read_journal(house.place.journal)[house.kept[-1].chain]
    assert newest[0]["facts"]["former_strays"] == 1
    assert newest[0]["facts"]["former_chain"] == house.kept[0].chain
