"""AU-12: journals made to break their readers. A parse problem is a finding with its place, never "ok"."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from broker_cli.chain import Verifier
from broker_cli.journal import MAX_LINE, NotAJournalError, parse
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.cli.test_audit import SIGNED, journal, reasons, verify


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
def test_AU_12_no_noise_is_a_record(noise: bytes) -> None:
    with pytest.raises(NotAJournalError):
        parse(noise)


FIRST = journal().bytes.splitlines()[0]
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=4), inner), max_leaves=9
)


@given(st.sampled_from(sorted(json.loads(FIRST))), _VALUES)
def test_AU_12_no_field_takes_another_type(name: str, value: object) -> None:
    record = json.loads(FIRST)
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
    changed = change(FIRST)
    assert changed != FIRST
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
