"""Verifies audit chains: files and a public key are enough, no broker and no network (docs/audit-format.md).

A chain is what one broker process wrote. What the verdict covers: every record up to a chain's newest signed head
cannot have been changed, removed, added or moved without a finding. Records after it are only linked to each other;
the verdict says how many there are. A chain that was cut behind a signed head looks complete by itself: heads kept
elsewhere (``kept``) give it away. What the chains say of each other is held against them in ``chain_links``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from broker_cli.chain_links import Links, former_of
from broker_cli.journal import ConvertedError, Line, NotAJournalError, lines, moment
from broker_cli.verdict import (
    MAX_FINDINGS,
    MAX_TAIL_RECORDS,
    MAX_TAIL_SECONDS,
    FollowedChain,
    Kept,
    Signed,
    TailLimits,
    Verdict,
    cover,
)

__all__ = [
    "MAX_TAIL_RECORDS",
    "MAX_TAIL_SECONDS",
    "FollowedChain",
    "Kept",
    "Signed",
    "TailLimits",
    "Verdict",
    "Verifier",
]

UNSIGNED = "no good signed head: anybody could have written this chain (the broker signs each when it begins)"

CONVERTED = (
    "{} of its {} lines have the line end of Windows or a byte order mark: a program for text has copied it. They were "
    "verified without; copy the file again, as it is"
)

EXPLAINED = {"FILE_CONVERTED", "NOT_A_JOURNAL"}
"""Findings that say enough of why no record was found."""

SOME = 3
"""So many lines of a file are shown one by one, when none of it can be read."""

STILLBORN = "it has no signed head, and nothing but its first record: a start that failed, or one that is under way"

ENDED = "audit/ended"
"""The resource of the broker's own record with which a chain ends in order."""

NAMED = re.compile(r"(?P<chain>.+)\.(?P<number>\d{6})\.jsonl", re.ASCII)
"""A file as the broker names it; under any other name it is a copy, and its name says nothing."""

OVERLAP = timedelta(hours=24)
"""After this long a broker signs nothing with an audit key that has been handed over, and has it destroyed."""

CLOCK_TOLERANCE = timedelta(seconds=5)
"""Calls that run side by side are recorded a little out of order; more than this is a clock that was moved."""


def statement(chain: str, sequence: int, head_hash: str, time: str) -> bytes:
    """The bytes that the audit key signs for a head."""
    return f"broker-audit-head-v1\n{chain}\n{sequence}\n{head_hash}\n{time}\n".encode()


class Verifier:
    """Follows chains line by line. Memory grows only with the number of records since a chain's newest head."""

    def __init__(
        self,
        signed: Signed,
        kept: Iterable[Kept] = (),
        limits: TailLimits | None = None,
        known_torn: Iterable[str] = (),
        replaced: Mapping[int, datetime] | None = None,
    ) -> None:
        """``replaced``: when the key of each number that ``signed`` gives was handed over."""
        self._signed = signed
        self._replaced = replaced or {}
        self._limits = limits or TailLimits()
        self._kept = list(kept)
        self._wanted = {(head.chain, head.sequence): "" for head in self._kept}
        self.verdict = Verdict()
        self._known_torn = frozenset(known_torn)
        self._file_numbers: dict[str, int] = {}

    def run(self, paths: list[Path], step: Callable[[int], None] = lambda _: None) -> Verdict:
        """Verify whole journals; ``step`` is told the number of records read, now and then."""
        for path in sorted(paths, key=_start):
            self._file(path, step)
            if len(self.verdict.findings) >= MAX_FINDINGS:
                self._find("TOO_MANY_FINDINGS", f"stopped after {MAX_FINDINGS} findings")
                return self.verdict
        self._compare_kept()
        Links(self.verdict, self._known_torn).hold()
        for chain in self.verdict.chains.values():
            self._judge_tail(chain)
        if not self.verdict.records and not any(one.reason in EXPLAINED for one in self.verdict.findings):
            self._find("NO_RECORDS", "no audit record was found, so nothing is proven")
        return self.verdict

    def _file(self, path: Path, step: Callable[[int], None]) -> None:
        try:
            self._lines(path, step)
        except ConvertedError as fault:
            self.verdict.find("FILE_CONVERTED", str(fault), file=str(path))
        except NotAJournalError as fault:
            self.verdict.find("FILE_UNREADABLE", str(fault), file=str(path))
        except OSError as fault:
            self.verdict.find("FILE_UNREADABLE", f"it cannot be read: {fault.strerror}", file=str(path))

    def _lines(self, path: Path, step: Callable[[int], None]) -> None:
        """Follow one file; what is true of the whole of it is one finding and not one for each of its lines."""
        chain: FollowedChain | None = None
        total = converted = 0
        early: list[Line] = []  # lines that cannot be read, before any that can
        for line in lines(path):
            total, converted = line.number, converted + line.converted
            if chain is None and line.record is None:
                early += [line] if len(early) < MAX_FINDINGS else []
                continue
            if chain is None:
                self._all_unreadable(early)
                early = []
                if (chain := self._line(line, chain)) is not None:
                    self._check_name(path, chain)
            else:
                chain = self._line(line, chain)
            if line.number % 4096 == 0:
                step(self.verdict.records)
            if len(self.verdict.findings) >= MAX_FINDINGS:
                break
        if len(early) > SOME:
            detail = f"none of its {total} lines is a record: it is no journal, or was laid out anew"
            self.verdict.find("NOT_A_JOURNAL", detail, file=str(path))
        else:
            self._all_unreadable(early)
        if converted:
            self.verdict.find("FILE_CONVERTED", CONVERTED.format(converted, total), chain, file=str(path))
        if not total:
            self.verdict.note("FILE_EMPTY", "the file is empty", file=str(path))

    def _all_unreadable(self, found: list[Line]) -> None:
        for line in found:
            self._line(line, None)

    def _check_name(self, path: Path, chain: FollowedChain) -> None:
        """A file that bears the name of another one, or of another place in its chain, was put there by somebody."""
        found = NAMED.fullmatch(path.name)
        if found is None:
            return
        number, before = int(found["number"]), self._file_numbers.get(chain.name, 0)
        if found["chain"] != chain.name:
            self.verdict.find("FILE_MISNAMED", "the file is named after another chain", chain, file=str(path))
        elif number <= before:
            self.verdict.find("FILE_MISNAMED", f"it holds what follows file {before:06d}", chain, file=str(path))
        self._file_numbers[chain.name] = max(number, before)

    def _line(self, line: Line, chain: FollowedChain | None) -> FollowedChain | None:
        """Check one line; ``chain`` is the one its file is about, once a line has said so."""
        record = line.record
        if record is None and line.torn and chain is not None:
            chain.torn = line  # what a crash leaves, or a cut: the end of the run tells
            return chain
        if record is None:
            self._find("LINE_UNREADABLE", line.fault, chain, line)
            if chain is not None:
                _advance(chain, hashlib.sha256(line.raw).hexdigest(), chain.count + 1)
            return chain
        named = self.verdict.chains.setdefault(record["chain"], FollowedChain(name=record["chain"]))
        if chain is not None and named is not chain:
            self._find("CHAIN_MIXED", "a record of another chain stands here", chain, line)
        self.verdict.records += 1
        self._link(named, record, line)
        if record["seq"] == 1 and record["kind"] == "entry":
            named.former = former_of(record["facts"])
            named.opened = (record["rpc"], record["resource"]) == ("-", f"audit/{named.name}")
        if record["kind"] == "head":
            self._head(named, record, line)
        return named if chain is None else chain

    def _link(self, chain: FollowedChain, record: dict[str, Any], line: Line) -> None:
        """Check place, link and time against the record before, then take this record as the last one."""
        if record["seq"] != chain.count + 1:
            self._find("SEQUENCE_BROKEN", f"record {record['seq']} stands where {chain.count + 1} belongs", chain, line)
        if record["prev"] != chain.last:
            self._find(
                "LINK_BROKEN",
                f"it does not follow record {chain.count}: that record, or the field prev here, was changed",
                chain,
                line,
            )
        time = moment(record["time"])
        if chain.last_time is not None and time < chain.last_time - CLOCK_TOLERANCE:
            back = (chain.last_time - time).total_seconds()
            self.verdict.note("TIME_WENT_BACK", f"the clock was {back:.0f} s behind the record before", chain, line)
        chain.last_time = time
        _advance(chain, hashlib.sha256(line.raw).hexdigest(), record["seq"])
        if (chain.name, chain.count) in self._wanted:
            self._wanted[chain.name, chain.count] = chain.last
        if record["kind"] == "entry":
            chain.pending[chain.count] = time
            self._end(chain, record, line)

    def _end(self, chain: FollowedChain, record: dict[str, Any], line: Line) -> None:
        if chain.ended:
            self._find("RECORD_AFTER_END", f"the chain ended with record {chain.ended}", chain, line)
        elif record["rpc"] == "-" and record["resource"] == ENDED:
            chain.ended = chain.count

    def _head(self, chain: FollowedChain, record: dict[str, Any], line: Line) -> None:
        number, head_hash = record["head_seq"], record["head_hash"]
        said = statement(chain.name, number, head_hash, record["time"])
        signer = int(self._signed(bytes.fromhex(record["signature"]), said))
        if not signer:
            self._find("SIGNATURE_INVALID", "the signature of this head is not the audit key's", chain, line)
        elif why := self._superseded(chain, signer, moment(record["time"])):
            self._find("KEY_SUPERSEDED", why, chain, line)
        elif number >= record["seq"] or chain.hashes.get(number) != head_hash:
            self._find("HEAD_MISMATCH", f"the signed head is not the hash of record {number}", chain, line)
        else:
            cover(chain, number, moment(record["time"]))

    def _superseded(self, chain: FollowedChain, signer: int, time: datetime) -> str:
        """Why a key that has a successor cannot have signed this; "" if it can."""
        handed_over = self._replaced.get(signer)
        if signer < chain.signer:
            return "the former audit key has signed this head, after its successor had signed one of the same chain"
        chain.signer = signer
        if handed_over is not None and time > handed_over + OVERLAP:
            return f"the audit key that has signed this head was handed over at {handed_over.isoformat()}, long before"
        return ""

    def _compare_kept(self) -> None:
        for head in self._kept:
            seen = self._wanted[head.chain, head.sequence]
            chain = self.verdict.chains.get(head.chain)
            if not self._signed(head.signature, statement(head.chain, head.sequence, head.hash, head.time)):
                self._find("KEPT_HEAD_INVALID", f"the kept head {head.sequence} is not signed by the audit key", chain)
            elif chain is None:
                self._find("CHAIN_MISSING", f"the kept heads know the chain {head.chain}, the journals do not")
            elif head.sequence > chain.count:
                cut = head.sequence - chain.count
                self._find("CHAIN_CUT", f"at least {cut} records after record {chain.count} were cut off", chain)
            elif seen != head.hash:
                self._find("KEPT_HEAD_MISMATCH", f"record {head.sequence} is not the one that was signed", chain)
            else:
                cover(chain, head.sequence, moment(head.time))

    def _judge_tail(self, chain: FollowedChain) -> None:
        if chain.torn is not None:
            told = self.verdict.note if chain.name in self._known_torn else self.verdict.find
            told("LINE_TORN", "the last line is not whole: a crash, or a cut", chain, chain.torn)
        if chain.head == 0 and chain.count == 1 and chain.opened:
            self.verdict.note("STILLBORN", STILLBORN, chain)
        elif chain.head == 0:
            self._find("NOTHING_SIGNED", UNSIGNED, chain)
        elif chain.unsigned > self._limits.records or chain.unsigned_seconds > self._limits.seconds:
            self._find(
                "TAIL_UNSIGNED",
                f"{chain.unsigned} records over {chain.unsigned_seconds} s follow the newest signed head",
                chain,
            )
        elif chain.unsigned and chain.followed:
            self.verdict.note(
                "TAIL_UNSIGNED",
                f"{chain.unsigned} records follow its newest signed head, as the next chain found them: its process "
                "did not live to sign them",
                chain,
            )

    def _find(self, reason: str, detail: str, chain: FollowedChain | None = None, line: Line | None = None) -> None:
        self.verdict.find(reason, detail, chain, line)


def _advance(chain: FollowedChain, digest: str, number: int) -> None:
    chain.count, chain.last = number, digest
    chain.hashes[number] = digest


def _start(path: Path) -> tuple[str, int, str]:
    """Order files by the chain and place of their first record, so that rotated files are read as they were written."""
    try:
        for line in lines(path):
            record = line.record or {"chain": "", "seq": 0}
            return record["chain"], record["seq"], path.name
    except (NotAJournalError, OSError):
        return "", 0, path.name
    return "", 0, path.name
