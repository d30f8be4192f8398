"""What a verification comes to: chains as far as they were followed, findings, notes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from broker_cli.journal import Line

GENESIS = "0" * 64
MAX_FINDINGS = 100
MAX_TAIL_RECORDS = 2000
MAX_TAIL_SECONDS = 120
"""Twice what the broker lets pass before it signs a head."""

Signed = Callable[[bytes, bytes], int]
"""Says which audit key has signed a statement (the signature in DER): a number, the higher the later; 0: none."""


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
class TailLimits:
    """How much may follow the newest signed head."""

    records: int = MAX_TAIL_RECORDS
    seconds: int = MAX_TAIL_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Former:
    """What a chain's first record says of the chain before: how far that is vouched for, and how it was found.

    ``end`` and what follows: how the chain's files ended; None where none of them was there. ``by_hand``: an older
    broker wrote this, which took the chain as it found it and vouched for all of it.
    """

    chain: str
    sequence: int
    hash: str
    end: int | None = None
    end_hash: str = ""
    torn: int = 0
    torn_hash: str = ""
    by_hand: bool = False


@dataclass(slots=True, kw_only=True)
class FollowedChain:
    """How far one chain has been followed."""

    name: str
    count: int = 0
    last: str = GENESIS
    last_time: datetime | None = None
    head: int = 0  # the highest sequence covered by a good signature
    head_time: datetime | None = None
    signer: int = 0  # the newest audit key that has signed one of its heads
    former: Former | None = None
    opened: bool = False  # its first record is the broker's own, and so nobody's deed
    followed: bool = False  # a later chain has said how it ended
    ended: int = 0  # the record with which its process ended it
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

    chains: dict[str, FollowedChain] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    records: int = 0

    @property
    def intact(self) -> bool:
        """True only if something was read and nothing was found."""
        return self.records > 0 and not self.findings

    def find(
        self, reason: str, detail: str, chain: FollowedChain | None = None, line: Line | None = None, *, file: str = ""
    ) -> None:
        """Something that must not be."""
        self.findings.append(_finding(reason, detail, chain, line, file))

    def note(
        self, reason: str, detail: str, chain: FollowedChain | None = None, line: Line | None = None, *, file: str = ""
    ) -> None:
        """Something to know of."""
        if len(self.notes) < MAX_FINDINGS:
            self.notes.append(_finding(reason, detail, chain, line, file))


def cover(chain: FollowedChain, number: int, time: datetime | None) -> None:
    """Everything up to ``number`` is signed: forget the hashes before it. A head seen again covers nothing more."""
    if number <= chain.head:
        return
    chain.head, chain.head_time = number, time
    for old in [sequence for sequence in chain.hashes if sequence < number]:
        del chain.hashes[old]
    for old in [sequence for sequence in chain.pending if sequence <= number]:
        del chain.pending[old]


def _finding(reason: str, detail: str, chain: FollowedChain | None, line: Line | None, file: str) -> Finding:
    return Finding(
        reason=reason,
        detail=detail,
        chain=chain.name if chain else "",
        file=str(line.path) if line else file,
        line=line.number if line else 0,
    )
