"""The offline verifier against journals that the broker's own code wrote, and against everything done to them."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from broker_cli.audit import signature_check
from broker_cli.chain import Kept, TailLimits, Verdict, Verifier
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from broker.core import entries as written
from broker.core.model import AuditHead

START = datetime(2026, 11, 1, 8, 0, tzinfo=UTC)
KEY = ec.generate_private_key(ec.SECP256R1())
PEM = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
SIGNED = signature_check(PEM)


def signed_head(
    chain: str, sequence: int, digest: str, at: datetime, key: ec.EllipticCurvePrivateKey = KEY
) -> AuditHead:
    said = written.head_statement(chain, sequence, digest, at)
    signature = key.sign(said, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    return AuditHead(chain=chain, sequence=sequence, hash=digest, signed_at=at, signature=signature)


def entry(number: int, at: datetime, principal: str = "operator/alice") -> written.AuditEntry:
    return written.AuditEntry(
        time=at, phase=written.Phase.OUTCOME, call_id=f"call-{number}", rpc="KeyService/Sign", request_id="",
        principal=principal, authn="mtls", credential="0a1b", peer="ipv4:127.0.0.1:4", resource="key/payments",
        decision="allow", policies=("admins",), policy_version=3, outcome="ok", reason="",
        facts={"version": number, "algorithm": "ES256"},
    )  # fmt: skip


@dataclass
class Journal:
    """Lines as the broker writes them, and every head that was signed."""

    chain: str = "host-1"
    lines: list[bytes] | None = None
    heads: list[AuditHead] | None = None
    last: str = written.GENESIS
    at: datetime = START

    def add(self, count: int = 1, step: float = 1.0, principal: str = "operator/alice") -> Journal:
        self.lines, self.heads = self.lines or [], self.heads or []
        for _ in range(count):
            self.at += timedelta(seconds=step)
            line, self.last = written.encode(
                entry(len(self.lines), self.at, principal), self.chain, len(self.lines) + 1, self.last
            )
            self.lines.append(line)
        return self

    def sign(self, key: ec.EllipticCurvePrivateKey = KEY) -> Journal:
        assert self.lines is not None
        assert self.heads is not None
        head = signed_head(self.chain, len(self.lines), self.last, self.at, key)
        self.heads.append(head)
        line, self.last = written.encode_head(head, len(self.lines) + 1, self.last)
        self.lines.append(line)
        return self

    @property
    def bytes(self) -> bytes:
        return b"".join(line + b"\n" for line in self.lines or [])

    @property
    def kept(self) -> list[Kept]:
        def one(head: AuditHead) -> Kept:
            time = head.signed_at.isoformat(timespec="microseconds")
            return Kept(chain=head.chain, sequence=head.sequence, hash=head.hash, time=time, signature=head.signature)

        return [one(head) for head in self.heads or []]


def journal(chain: str = "host-1") -> Journal:
    return Journal(chain=chain).add(7).sign().add(5).sign().add(6).sign()


def verify(
    tmp_path: Path, *contents: bytes, kept: list[Kept] | None = None, limits: TailLimits | None = None
) -> Verdict:
    paths = []
    for number, content in enumerate(contents):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(content)
        paths.append(path)
    return Verifier(SIGNED, kept or [], limits).run(paths)


def reasons(verdict: Verdict) -> set[str]:
    assert not verdict.intact
    return {finding.reason for finding in verdict.findings}


def test_what_the_broker_writes_verifies(tmp_path: Path) -> None:
    verdict = verify(tmp_path, journal().bytes, kept=journal().kept)
    assert verdict.findings == []
    assert verdict.intact
    assert verdict.records == 21
    assert verdict.chains["host-1"].head == 20
    assert verdict.chains["host-1"].unsigned == 0


@pytest.mark.parametrize("tried", [200, pytest.param(20_000, marks=pytest.mark.soak)])
def test_AU_01_any_flipped_bit_is_found_and_placed(tmp_path: Path, tried: int) -> None:
    whole = journal().bytes
    for bit in random.sample(range(len(whole) * 8), tried):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        verdict = verify(tmp_path, bytes(flipped))
        assert not verdict.intact, f"bit {bit} was flipped and not found"
        at = whole[: bit // 8].count(b"\n") + 1
        assert any(finding.line in {at, at + 1} for finding in verdict.findings), (
            f"bit {bit} found, but not in line {at}"
        )


@pytest.mark.parametrize("line", range(21))
def test_AU_02_a_deleted_record_is_found(tmp_path: Path, line: int) -> None:
    left = journal()
    assert left.lines is not None
    del left.lines[line]
    if line == 20:  # the newest line is a head: without it the chain is whole, but less of it is signed
        verdict = verify(tmp_path, left.bytes, kept=left.kept)
        assert verdict.chains["host-1"].head == 20
    else:
        assert {"SEQUENCE_BROKEN", "LINK_BROKEN"} <= reasons(verify(tmp_path, left.bytes))


@given(st.permutations(range(21)))
def test_AU_02_reordered_records_are_found(tmp_path_factory: pytest.TempPathFactory, order: list[int]) -> None:
    given_ = journal()
    assert given_.lines is not None
    given_.lines = [given_.lines[number] for number in order]
    verdict = verify(tmp_path_factory.mktemp("journal"), given_.bytes)
    assert verdict.intact == (order == sorted(order))


@given(st.integers(0, 20), st.integers(0, 21))
def test_AU_02_a_repeated_record_is_found(tmp_path_factory: pytest.TempPathFactory, line: int, to: int) -> None:
    given_ = journal()
    assert given_.lines is not None
    given_.lines.insert(to, given_.lines[line])
    assert not verify(tmp_path_factory.mktemp("journal"), given_.bytes).intact


@pytest.mark.parametrize("at", [0, 1, 7, 8, 19, 20])
def test_AU_02_a_forged_record_that_links_back_is_found(tmp_path: Path, at: int) -> None:
    given_ = journal()
    assert given_.lines is not None
    before = json.loads(given_.lines[at])
    forged, _ = written.encode(entry(99, START, "operator/mallory"), "host-1", before["seq"], before["prev"])
    inserted = [*given_.lines[:at], forged, *given_.lines[at:]]
    replaced = [*given_.lines[:at], forged, *given_.lines[at + 1 :]]
    for lines in (inserted, replaced):
        if at == 20 and lines is replaced:
            continue  # what stands after the newest head is not signed yet; the kept head still holds what is before
        assert not verify(tmp_path, Journal(lines=lines).bytes).intact


def test_AU_02_records_of_another_chain_are_found(tmp_path: Path) -> None:
    mine, other = journal(), journal("host-2")
    assert mine.lines is not None
    assert other.lines is not None
    spliced = Journal(lines=[*mine.lines[:12], *other.lines[12:]])
    assert "CHAIN_MIXED" in reasons(verify(tmp_path, spliced.bytes))


def test_AU_02_a_head_of_another_chain_does_not_count(tmp_path: Path) -> None:
    other = journal("host-2")
    assert other.heads is not None
    mine = Journal().add(7)
    line, _ = written.encode_head(replace(other.heads[0], chain="host-1"), 8, mine.last)
    assert mine.lines is not None
    mine.lines.append(line)
    assert {"SIGNATURE_INVALID", "NOTHING_SIGNED"} <= reasons(verify(tmp_path, mine.bytes))


@pytest.mark.parametrize("cut", range(1, 21))
def test_AU_03_a_cut_end_is_found_by_a_kept_head(tmp_path: Path, cut: int) -> None:
    given_ = journal()
    assert given_.lines is not None
    kept, given_.lines = given_.kept, given_.lines[:-cut]
    verdict = verify(tmp_path, given_.bytes, kept=kept)
    if cut == 1:  # only the line of the newest head is gone, and the kept copy of it says all is there
        assert verdict.intact
    else:
        assert "CHAIN_CUT" in reasons(verdict)


def test_AU_03_a_lost_chain_is_found_by_a_kept_head(tmp_path: Path) -> None:
    kept = journal().kept + journal("host-2").kept
    assert "CHAIN_MISSING" in reasons(verify(tmp_path, journal().bytes, kept=kept))


def test_AU_04_a_chain_rewritten_with_fresh_hashes_is_found(tmp_path: Path) -> None:
    forger = ec.generate_private_key(ec.SECP256R1())
    honest = journal()
    unsigned = Journal().add(21, principal="operator/mallory")
    signed = Journal().add(7, principal="operator/mallory").sign(forger).add(12).sign(forger)
    assert "NOTHING_SIGNED" in reasons(verify(tmp_path, unsigned.bytes))
    assert {"SIGNATURE_INVALID", "NOTHING_SIGNED"} <= reasons(verify(tmp_path, signed.bytes))
    assert "KEPT_HEAD_MISMATCH" in reasons(verify(tmp_path, unsigned.bytes, kept=honest.kept))


def test_AU_04_genuine_heads_do_not_cover_rewritten_records(tmp_path: Path) -> None:
    honest, forged = journal(), Journal().add(7, principal="operator/mallory")
    assert honest.heads is not None
    assert forged.lines is not None
    line, _ = written.encode_head(honest.heads[0], 8, forged.last)
    forged.lines.append(line)
    assert {"HEAD_MISMATCH", "NOTHING_SIGNED"} <= reasons(verify(tmp_path, forged.bytes))


def test_AU_13_a_clock_that_went_back_is_flagged(tmp_path: Path) -> None:
    given_ = journal()
    given_.at -= timedelta(hours=1)
    verdict = verify(tmp_path, given_.add(2).sign().bytes)
    assert [note.reason for note in verdict.notes] == ["TIME_WENT_BACK"]
    assert verdict.notes[0].line == 22
    assert verdict.intact


def test_a_torn_last_line_is_found(tmp_path: Path) -> None:
    assert "LINE_TORN" in reasons(verify(tmp_path, journal().bytes[:-20]))
    assert "LINE_TORN" in reasons(verify(tmp_path, journal().bytes[:-1]))
    assert "LINE_UNREADABLE" in reasons(verify(tmp_path, b'{"chain"'))


def follow(before: Journal, name: str) -> Journal:
    """The chain of the next process: its first record names the end of the one before."""
    opening = replace(
        entry(0, before.at),
        facts={"former_chain": before.chain, "former_sequence": len(before.lines or []), "former_hash": before.last},
    )
    line, last = written.encode(opening, name, 1, written.GENESIS)
    return Journal(chain=name, lines=[line], heads=[], last=last, at=before.at)


def test_AU_03_a_link_of_an_older_broker_vouches_as_it_did(tmp_path: Path) -> None:
    first = Journal().add(5)  # killed before anything was signed
    second = follow(first, "host-2").add(2)
    third = follow(second, "host-3").add(1).sign()
    verdict = verify(tmp_path, third.bytes, first.bytes, second.bytes)
    assert verdict.findings == []
    assert [(note.reason, note.chain) for note in verdict.notes] == [("TAKEN_OVER", "host-2"), ("TAKEN_OVER", "host-1")]
    assert [chain.head for chain in verdict.chains.values()] == [5, 3, 2]
    assert first.lines is not None
    cut = Journal(lines=first.lines[:-1])
    assert "CHAIN_CUT" in reasons(verify(tmp_path, third.bytes, cut.bytes, second.bytes))
    other = Journal().add(5, principal="operator/mallory")
    assert {"FORMER_MISMATCH", "NOTHING_SIGNED"} <= reasons(verify(tmp_path, third.bytes, other.bytes, second.bytes))
    (tmp_path / "1.jsonl").unlink()
    assert "CHAIN_MISSING" in reasons(Verifier(SIGNED).run([tmp_path / "0.jsonl", tmp_path / "2.jsonl"]))


def test_half_a_record_left_by_a_crash_is_only_noted_where_an_older_broker_vouched(tmp_path: Path) -> None:
    first = Journal().add(5)
    second = follow(first, "host-2").sign()
    torn = first.bytes + b'{"authn":"mtls","call":"ca'
    verdict = verify(tmp_path, torn, second.bytes)
    assert verdict.intact
    assert [(note.reason, note.line) for note in verdict.notes] == [("TORN_LINE", 6), ("TAKEN_OVER", 0)]
    assert "LINE_TORN" in reasons(verify(tmp_path, torn, Journal(chain="host-2").add(1).sign().bytes))


def test_the_unsigned_tail_is_told_and_bounded(tmp_path: Path) -> None:
    given_ = journal().add(4, step=10)
    verdict = verify(tmp_path, given_.bytes)
    assert (verdict.intact, verdict.chains["host-1"].unsigned, verdict.chains["host-1"].unsigned_seconds) == (
        True,
        4,
        30,
    )
    assert "TAIL_UNSIGNED" in reasons(verify(tmp_path, given_.bytes, limits=TailLimits(records=3)))
    assert "TAIL_UNSIGNED" in reasons(verify(tmp_path, given_.bytes, limits=TailLimits(seconds=29)))


def test_a_chain_in_several_files_is_read_in_its_order(tmp_path: Path) -> None:
    given_, other = journal(), journal("host-2")
    assert given_.lines is not None
    early, late = Journal(lines=given_.lines[:9]).bytes, Journal(lines=given_.lines[9:]).bytes
    assert verify(tmp_path, late, other.bytes, early).intact
    assert "SEQUENCE_BROKEN" in reasons(verify(tmp_path, late))
    assert not verify(tmp_path, late, early, early).intact
