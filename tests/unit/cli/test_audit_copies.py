"""Journals that something has happened to on their way: said for what it is, once, and nothing hides behind it."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from broker_cli.doctor_host import checks
from broker_cli.journal import files
from broker_cli.verdict import Verdict

from tests.unit.cli.test_audit import Journal, journal, verify
from tests.unit.cli.test_audit_command import run

BOM = b"\xef\xbb\xbf"


def long() -> Journal:
    return Journal().add(150).sign()


def told(verdict: Verdict) -> list[tuple[str, str]]:
    return [(one.reason, one.detail) for one in verdict.findings]


MADE_INTO: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "gzip": (gzip.compress, "packed (gzip)"),
    "xz": (lzma.compress, "packed (xz)"),
    "bzip2": (bz2.compress, "packed (bzip2)"),
    "UTF-16 of PowerShell": (lambda text: text.decode().replace("\n", "\r\n").encode("utf-16"), "UTF-16"),
    "UTF-16 without a mark": (lambda text: text.decode().encode("utf-16-be"), "is a record"),
    "laid out": (lambda text: b"\n".join(json.dumps(json.loads(one), indent=1).encode() for one in text.split()), ""),
    "a page of a proxy": (lambda _: b"<html>\n" * 200, "is a record"),
}


@pytest.mark.parametrize("what", MADE_INTO)
def test_K18_a_journal_that_was_made_into_something_else_is_one_finding(tmp_path: Path, what: str) -> None:
    make, said = MADE_INTO[what]
    [(reason, detail)] = told(verify(tmp_path, make(long().bytes)))
    assert reason in {"FILE_CONVERTED", "NOT_A_JOURNAL"}
    assert said in detail


CONVERSIONS: dict[str, Callable[[bytes], bytes]] = {
    "CRLF": lambda text: text.replace(b"\n", b"\r\n"),
    "a mark": lambda text: BOM + text,
    "both": lambda text: BOM + text.replace(b"\n", b"\r\n"),
    "some lines": lambda text: text.replace(b"\n", b"\r\n", 40),
}


@pytest.mark.parametrize("what", CONVERSIONS)
def test_K18_a_journal_that_went_through_an_editor_of_windows_is_one_finding(tmp_path: Path, what: str) -> None:
    verdict = verify(tmp_path, CONVERSIONS[what](long().bytes), kept=long().kept)
    [(reason, detail)] = told(verdict)
    assert reason == "FILE_CONVERTED"
    assert "151 lines" in detail
    assert verdict.records == 151  # and all of them were verified


@pytest.mark.parametrize("what", CONVERSIONS)
def test_K18_tampering_does_not_hide_behind_a_conversion(tmp_path: Path, what: str) -> None:
    lines = long().bytes.split(b"\n")
    changed = [*lines[:70], lines[70].replace(b"alice", b"mallo"), *lines[71:]]
    found = verify(tmp_path, CONVERSIONS[what](b"\n".join(changed)))
    assert {"FILE_CONVERTED", "LINK_BROKEN"} <= {one.reason for one in found.findings}
    assert [one.line for one in found.findings if one.reason == "LINK_BROKEN"] == [72]
    removed = verify(tmp_path, CONVERSIONS[what](b"\n".join(lines[:70] + lines[71:])))
    assert "SEQUENCE_BROKEN" in {one.reason for one in removed.findings}


def test_K18_a_carriage_return_anywhere_else_is_no_conversion(tmp_path: Path) -> None:
    text = journal().bytes.replace(b'"phase"', b'\r"phase"', 1)
    assert "LINE_UNREADABLE" in {one.reason for one in verify(tmp_path, text).findings}


def test_K18_an_empty_file_beside_a_sound_one_is_told_and_alone_proves_nothing(tmp_path: Path) -> None:
    beside = verify(tmp_path, journal().bytes, b"")
    assert beside.intact
    assert [one.reason for one in beside.notes] == ["FILE_EMPTY"]
    alone = tmp_path / "alone"
    alone.mkdir()
    assert [one.reason for one in verify(alone, b"").findings] == ["NO_RECORDS"]


def test_K18_a_download_that_broke_off_is_told_as_that(tmp_path: Path) -> None:
    whole = journal().bytes
    assert ("LINE_TORN", "the last line is not whole: a crash, or a cut") in told(verify(tmp_path, whole[:-20]))


def test_K18_packed_files_of_a_folder_are_not_taken_for_removed_ones(tmp_path: Path) -> None:
    (tmp_path / "host-1.000001.jsonl.gz").write_bytes(gzip.compress(long().bytes))
    assert [path.name for path in files((tmp_path,))] == ["host-1.000001.jsonl.gz"]
    (tmp_path / "host-1.000001.jsonl").write_bytes(long().bytes)
    assert [path.name for path in files((tmp_path,))] == ["host-1.000001.jsonl"]


def test_K18_show_and_doctor_say_what_a_packed_journal_is(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    folder.mkdir()
    (folder / "host-1.000001.jsonl.gz").write_bytes(gzip.compress(long().bytes))
    _, _, said = run("show", folder)
    assert said.count("packed (gzip): unpack it first") == 1
    config = tmp_path / "broker.toml"
    config.write_bytes(BOM + f'[store]\r\njournal = "{folder}"\r\n'.encode())
    found = {one.name: one for one in checks(config)}
    assert "packed (gzip)" in found["audit-head"].detail
