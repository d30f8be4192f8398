"""The offline verifier against journals that the broker's own code wrote, and against everything done to them."""

# ruff: noqa: N802  a row of the attack list keeps its id

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from broker_cli.audit import signature_check
from broker_cli.chain import Kept, Limits, Verdict, Verifier
from broker_cli.journal import MAX_LINE, NotAJournalError, parse
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core import audit as written
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


def verify(tmp_path: Path, *contents: bytes, kept: list[Kept] | None = None, limits: Limits | None = None) -> Verdict:
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


def test_AU_01_any_flipped_bit_is_found_and_placed(tmp_path: Path) -> None:
    whole = journal().bytes
    for bit in random.sample(range(len(whole) * 8), 1500):
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
@settings(max_examples=100, deadline=None)
def test_AU_02_reordered_records_are_found(tmp_path_factory: pytest.TempPathFactory, order: list[int]) -> None:
    given_ = journal()
    assert given_.lines is not None
    given_.lines = [given_.lines[number] for number in order]
    verdict = verify(tmp_path_factory.mktemp("journal"), given_.bytes)
    assert verdict.intact == (order == sorted(order))


@given(st.integers(0, 20), st.integers(0, 21))
@settings(max_examples=100, deadline=None)
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


def _nested(depth: int) -> bytes:
    return b'{"facts":' * depth + b"1" + b"}" * depth


@pytest.mark.parametrize(
    "hostile",
    [
        b"[" * (MAX_LINE - 1),
        _nested(6000),
        b"[" * 400 + b"]" * 400,
        b'{"seq":' + b"9" * 60_000 + b"}",
        b'{"seq":1e999999}',
        b'{"seq":NaN}',
        b'{"seq":-Infinity}',
        b'{"chain":"\xff\xfe"}',
        "{“chain”:1}".encode(),
        b'{"chain":"\\ud800"}',
        b"\x00" * 512,
        b"x" * (MAX_LINE * 3),
        b"null",
        b"",
        b"\r",
        b'{"kind":"entry"}',
        b'{"kind":["entry"]}',
    ],
    ids=range(17),
)
def test_AU_12_a_hostile_line_is_refused_with_its_place(tmp_path: Path, hostile: bytes) -> None:
    given_ = journal()
    assert given_.lines is not None
    given_.lines.insert(9, hostile)
    verdict = verify(tmp_path, given_.bytes)
    assert ("LINE_UNREADABLE", 10) in {(finding.reason, finding.line) for finding in verdict.findings}
    assert not verdict.intact


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_AU_12_no_noise_is_a_record(noise: bytes) -> None:
    with pytest.raises(NotAJournalError):
        parse(noise)


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=4), inner), max_leaves=9
)


@given(st.sampled_from(sorted(json.loads(journal().bytes.splitlines()[0]))), _VALUES)
@settings(max_examples=400, deadline=None)
def test_AU_12_no_field_takes_another_type(name: str, value: object) -> None:
    first = journal().bytes.splitlines()[0]
    record = json.loads(first)
    right = type(record[name])
    record[name] = value
    raw = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    if type(value) is right:
        return
    with pytest.raises(NotAJournalError):
        parse(raw)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda line: line.replace(b'"v":1', b'"v":1.0'), "integer"),
        (lambda line: line.replace(b'"v":1', b'"v":true'), "type"),
        (lambda line: line.replace(b'"v":1', b'"v":2'), "version"),
        (lambda line: line.replace(b'"v":1', b'"v":1,"v":1'), "canonical"),
        (lambda line: line.replace(b'"v":1', b'"v": 1'), "canonical"),
        (lambda line: line.replace(b'"kind":"entry"', b'"kind":"remark"'), "neither"),
        (lambda line: line.replace(b"+00:00", b"+01:00"), "UTC"),
        (lambda line: line.replace(b"2026-11-01", b"2026-13-01"), "exist"),
        (lambda line: line.replace(b"host-1", b"host 1"), "chain"),
        (lambda line: line.replace(b'"mtls"', b'"\\u006dtls"'), "canonical"),
    ],
)
def test_AU_12_only_one_way_of_writing_a_record_is_taken(change: Callable[[bytes], bytes], why: str) -> None:
    first = journal().bytes.splitlines()[0]
    changed = change(first)
    assert changed != first
    with pytest.raises(NotAJournalError, match=why):
        parse(changed)


def test_AU_12_places_that_are_no_files_are_never_ok(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero"), tmp_path / "missing.jsonl", tmp_path):
        verdict = Verifier(SIGNED).run([path])
        assert {"FILE_UNREADABLE", "NO_RECORDS"} <= reasons(verdict)
    assert reasons(Verifier(SIGNED).run([])) == {"NO_RECORDS"}
    assert "NO_RECORDS" in reasons(verify(tmp_path, b""))


def test_AU_12_findings_are_bounded(tmp_path: Path) -> None:
    assert len(verify(tmp_path, b"{}\n" * 5000).findings) <= 101


def test_AU_13_a_clock_that_went_back_is_flagged(tmp_path: Path) -> None:
    given_ = journal()
    given_.at -= timedelta(hours=1)
    verdict = verify(tmp_path, given_.add(2).sign().bytes)
    assert [note.reason for note in verdict.notes] == ["TIME_WENT_BACK"]
    assert verdict.notes[0].line == 22
    assert verdict.intact


def test_a_torn_last_line_is_found(tmp_path: Path) -> None:
    assert "LINE_UNREADABLE" in reasons(verify(tmp_path, journal().bytes[:-20]))
    assert "LINE_UNREADABLE" in reasons(verify(tmp_path, journal().bytes[:-1]))


def test_the_unsigned_tail_is_told_and_bounded(tmp_path: Path) -> None:
    given_ = journal().add(4, step=10)
    verdict = verify(tmp_path, given_.bytes)
    assert (verdict.intact, verdict.chains["host-1"].unsigned, verdict.chains["host-1"].unsigned_seconds) == (
        True,
        4,
        30,
    )
    assert "TAIL_UNSIGNED" in reasons(verify(tmp_path, given_.bytes, limits=Limits(records=3)))
    assert "TAIL_UNSIGNED" in reasons(verify(tmp_path, given_.bytes, limits=Limits(seconds=29)))


def test_a_chain_in_several_files_is_read_in_its_order(tmp_path: Path) -> None:
    given_, other = journal(), journal("host-2")
    assert given_.lines is not None
    early, late = Journal(lines=given_.lines[:9]).bytes, Journal(lines=given_.lines[9:]).bytes
    assert verify(tmp_path, late, other.bytes, early).intact
    assert "SEQUENCE_BROKEN" in reasons(verify(tmp_path, late))
    assert not verify(tmp_path, late, early, early).intact
