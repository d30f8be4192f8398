"""Verifies audit chains: files and a public key are enough, no broker and no network (docs/audit-format.md).

A chain is what one broker process wrote; its first record names the end of the chain before it, so that chains form a
chain too. What the verdict covers: every record up to a chain's newest signed head, and in the chains before it, cannot
have been changed, removed, added or moved without a finding. Records after it are only linked to each other; the
verdict says how many there are. A chain that was cut behind a signed head looks complete by itself: heads kept
elsewhere (``kept``) give it away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from broker_cli.journal import Line, NotAJournalError, lines, moment

GENESIS = "0" * 64
MAX_FINDINGS = 100
MAX_TAIL_RECORDS = 2000
MAX_TAIL_SECONDS = 120
"""Twice what the broker lets pass before it signs a head."""

UNSIGNED = "no good signed head: anybody could have written this chain (one that just began is signed within a minute)"

CLOCK_TOLERANCE = timedelta(seconds=5)
"""Calls that run side by side are recorded a little out of order; more than this is a clock that was moved."""


Signed = Callable[[bytes, bytes], bool]
"""Says whether a signature (DER) is the audit key's over a statement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that must not be. ``line`` 0 is the file, or the chain, as a whole."""

    reason: str
    detail: str
    chain: str = ""
    file: str = ""
    line: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A head that was exported earlier and kept where the journal's host cannot reach it."""

    chain: str
    sequence: int
    hash: str
    time: str  # as it stands in the signed statement
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much may follow the newest signed head."""

    records: int = MAX_TAIL_RECORDS
    seconds: int = MAX_TAIL_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Former:
    """What a chain's first record says of the chain before: how far it had come by then."""

    chain: str
    sequence: int
    hash: str


@dataclass(slots=True, kw_only=True)
class Chain:
    """How far one chain has been followed."""

    name: str
    count: int = 0
    last: str = GENESIS
    last_time: datetime | None = None
    head: int = 0  # the highest sequence covered by a good signature
    head_time: datetime | None = None
    former: Former | None = None
    torn: Line | None = None
    hashes: dict[int, str] = field(default_factory=dict)  # from the newest good head on
    pending: dict[int, datetime] = field(default_factory=dict)  # entries after it; head lines are signed themselves

    @property
    def unsigned(self) -> int:
        """Entries that no signature covers."""
        return len(self.pending)

    @property
    def unsigned_seconds(self) -> int:
        """From the first to the last of them."""
        if not self.pending:
            return 0
        times = list(self.pending.values())
        return max(0, int((times[-1] - times[0]).total_seconds()))


@dataclass(slots=True, kw_only=True)
class Verdict:
    """``notes`` are worth a look but no proof of tampering; only ``findings`` are."""

    chains: dict[str, Chain] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    records: int = 0

    @property
    def intact(self) -> bool:
        """True only if something was read and nothing was found."""
        return self.records > 0 and not self.findings


def statement(chain: str, sequence: int, head_hash: str, time: str) -> bytes:
    """The bytes that the audit key signs for a head."""
    return f"broker-audit-head-v1\n{chain}\n{sequence}\n{head_hash}\n{time}\n".encode()


class Verifier:
    """Follows chains line by line. Memory grows only with the number of records since a chain's newest head."""

    def __init__(self, signed: Signed, kept: Iterable[Kept] = (), limits: Limits | None = None) -> None:
        self._signed = signed
        self._limits = limits or Limits()
        self._kept = list(kept)
        self._wanted = {(head.chain, head.sequence): "" for head in self._kept}
        self.verdict = Verdict()

    def run(self, paths: list[Path], step: Callable[[int], None] = lambda _: None) -> Verdict:
        """Verify whole journals; ``step`` is told the number of records read, now and then."""
        for path in sorted(paths, key=_start):
            self._file(path, step)
            if len(self.verdict.findings) >= MAX_FINDINGS:
                self._find("TOO_MANY_FINDINGS", f"stopped after {MAX_FINDINGS} findings")
                return self.verdict
        self._compare_kept()
        for chain in self.verdict.chains.values():
            self._compare_former(chain)
        for chain in self.verdict.chains.values():
            self._cover_former(chain)
        for chain in self.verdict.chains.values():
            self._judge_tail(chain)
        if not self.verdict.records:
            self._find("NO_RECORDS", "no audit record was found, so nothing is proven")
        return self.verdict

    def _file(self, path: Path, step: Callable[[int], None]) -> None:
        chain: Chain | None = None
        try:
            for line in lines(path):
                chain = self._line(line, chain)
                if line.number % 4096 == 0:
                    step(self.verdict.records)
                if len(self.verdict.findings) >= MAX_FINDINGS:
                    return
        except NotAJournalError as fault:
            self._find("FILE_UNREADABLE", str(fault), file=str(path))
        except OSError as fault:
            self._find("FILE_UNREADABLE", f"it cannot be read: {fault.strerror}", file=str(path))

    def _line(self, line: Line, chain: Chain | None) -> Chain | None:
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
        named = self.verdict.chains.setdefault(record["chain"], Chain(name=record["chain"]))
        if chain is not None and named is not chain:
            self._find("CHAIN_MIXED", "a record of another chain stands here", chain, line)
        self.verdict.records += 1
        self._link(named, record, line)
        if record["seq"] == 1 and record["kind"] == "entry":
            named.former = _former(record["facts"])
        if record["kind"] == "head":
            self._head(named, record, line)
        return named if chain is None else chain

    def _link(self, chain: Chain, record: dict[str, Any], line: Line) -> None:
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
            self._note("TIME_WENT_BACK", f"the clock was {back:.0f} s behind the record before", chain, line)
        chain.last_time = time
        _advance(chain, hashlib.sha256(line.raw).hexdigest(), record["seq"])
        if (chain.name, chain.count) in self._wanted:
            self._wanted[chain.name, chain.count] = chain.last
        if record["kind"] == "entry":
            chain.pending[chain.count] = time

    def _head(self, chain: Chain, record: dict[str, Any], line: Line) -> None:
        number, head_hash = record["head_seq"], record["head_hash"]
        said = statement(chain.name, number, head_hash, record["time"])
        if not self._signed(bytes.fromhex(record["signature"]), said):
            self._find("SIGNATURE_INVALID", "the signature of this head is not the audit key's", chain, line)
        elif number >= record["seq"] or chain.hashes.get(number) != head_hash:
            self._find("HEAD_MISMATCH", f"the signed head is not the hash of record {number}", chain, line)
        else:
            _cover(chain, number, moment(record["time"]))

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
                _cover(chain, head.sequence, moment(head.time))

    def _compare_former(self, chain: Chain) -> None:
        """Hold the chain before against what this one says of it."""
        said = chain.former
        if said is None:
            return
        before = self.verdict.chains.get(said.chain)
        if before is None:
            self._find("CHAIN_MISSING", f"it follows the chain {said.chain}, which is not among the journals", chain)
        elif before.count < said.sequence:
            self._find(
                "CHAIN_CUT", f"{chain.name} says that it had {said.sequence} records, not {before.count}", before
            )
        elif before.hashes.get(said.sequence, said.hash) != said.hash:
            self._find("FORMER_MISMATCH", f"{chain.name} names another record {said.sequence} of it", before)

    def _cover_former(self, chain: Chain) -> None:
        """A signed first record vouches for the chain before it, that one's for the next, and so on back."""
        while chain.head and chain.former is not None:
            said, chain.former = chain.former, None
            before = self.verdict.chains.get(said.chain)
            if before is None or before.hashes.get(said.sequence) != said.hash:
                return
            if before.torn is not None and before.count == said.sequence:
                self._note("TORN_LINE", "a crash left half a record, which nobody was told of", before, before.torn)
                before.torn = None
            _cover(before, said.sequence, chain.head_time)
            chain = before

    def _judge_tail(self, chain: Chain) -> None:
        if chain.torn is not None:
            self._find(
                "LINE_TORN", "the last line is not whole, and no later chain says that it ended so", chain, chain.torn
            )
        if chain.head == 0:
            self._find("NOTHING_SIGNED", UNSIGNED, chain)
        elif chain.unsigned > self._limits.records or chain.unsigned_seconds > self._limits.seconds:
            self._find(
                "TAIL_UNSIGNED",
                f"{chain.unsigned} records over {chain.unsigned_seconds} s follow the newest signed head",
                chain,
            )

    def _find(
        self, reason: str, detail: str, chain: Chain | None = None, line: Line | None = None, *, file: str = ""
    ) -> None:
        self.verdict.findings.append(_finding(reason, detail, chain, line, file))

    def _note(self, reason: str, detail: str, chain: Chain, line: Line) -> None:
        if len(self.verdict.notes) < MAX_FINDINGS:
            self.verdict.notes.append(_finding(reason, detail, chain, line, ""))


def _finding(reason: str, detail: str, chain: Chain | None, line: Line | None, file: str) -> Finding:
    return Finding(
        reason=reason,
        detail=detail,
        chain=chain.name if chain else "",
        file=str(line.path) if line else file,
        line=line.number if line else 0,
    )


def _advance(chain: Chain, digest: str, number: int) -> None:
    chain.count, chain.last = number, digest
    chain.hashes[number] = digest


def _former(facts: dict[str, Any]) -> Former | None:
    chain, sequence, digest = (facts.get(f"former_{name}") for name in ("chain", "sequence", "hash"))
    if isinstance(chain, str) and type(sequence) is int and isinstance(digest, str):
        return Former(chain=chain, sequence=sequence, hash=digest)
    return None


def _cover(chain: Chain, number: int, time: datetime | None) -> None:
    """Everything up to ``number`` is signed: forget the hashes before it. A head seen again covers nothing more."""
    if number <= chain.head:
        return
    chain.head, chain.head_time = number, time
    for old in [sequence for sequence in chain.hashes if sequence < number]:
        del chain.hashes[old]
    for old in [sequence for sequence in chain.pending if sequence <= number]:
        del chain.pending[old]


def _start(path: Path) -> tuple[str, int, str]:
    """Order files by the chain and place of their first record, so that rotated files are read as they were written."""
    try:
        for line in lines(path):
            record = line.record or {"chain": "", "seq": 0}
            return record["chain"], record["seq"], path.name
    except (NotAJournalError, OSError):
        return "", 0, path.name
    return "", 0, path.name
