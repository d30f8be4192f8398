"""What chains say of each other: each chain's first record names the one before it (docs/audit-format.md).

It says how far that one is vouched for, which the broker knew from a signed head and not from the files, and how its
files ended when the new chain began. The first makes a chain of the chains; the second makes sure that what no head
covers is neither cut nor added to later, and that a cut which the broker found stays one.
"""

from __future__ import annotations

import hashlib
from typing import Any

from broker_cli.verdict import FollowedChain, Former, Verdict, cover


class Links:
    """Holds the chains of a verdict against each other. ``known_torn``: chains whose torn line was looked into."""

    def __init__(self, verdict: Verdict, known_torn: frozenset[str]) -> None:
        self._verdict = verdict
        self._known_torn = known_torn

    def hold(self) -> None:
        """Compare all, then let what is signed vouch for what it names."""
        chains = self._verdict.chains
        for chain in chains.values():
            if chain.former is not None:
                self._compare(chain, chain.former)
        for chain in chains.values():
            self._cover(chain)

    def _compare(self, chain: FollowedChain, said: Former) -> None:
        find, before = self._verdict.find, self._verdict.chains.get(said.chain)
        if before is None:
            find("CHAIN_MISSING", f"it follows the chain {said.chain}, which is not among the journals", chain)
        elif before.count < said.sequence:
            find("CHAIN_CUT", f"{chain.name} says that it had {said.sequence} records, not {before.count}", before)
        elif before.hashes.get(said.sequence, said.hash) != said.hash:
            find("FORMER_MISMATCH", f"{chain.name} names another record {said.sequence} of it", before)
        if before is not None and not said.by_hand:
            self._compare_end(chain, said, before)

    def _compare_end(self, chain: FollowedChain, said: Former, before: FollowedChain) -> None:
        """How the chain before was found when this one began, and whether it is so still."""
        before.followed = True
        if said.end is None:
            self._verdict.note("FORMER_ABSENT", f"its files were not in the folder when {chain.name} began", before)
            return
        if before.head > said.end >= said.sequence:
            return  # its process lived on, and signed what it wrote
        find = self._verdict.find
        if said.end < said.sequence:
            end = f"with record {said.end}" if said.end >= 0 else "with a line that is no record"
            find(
                "CHAIN_CUT", f"it ended {end} when {chain.name} began, though it was signed to {said.sequence}", before
            )
        if before.count < said.end:
            find("CHAIN_CUT", f"{said.end - before.count} records were cut off after {chain.name} began", before)
        elif before.hashes.get(said.end, said.end_hash) != said.end_hash:
            find("FORMER_MISMATCH", f"{chain.name} found another record {said.end} in it", before)
        if any(number > said.end for number in before.pending):
            find("CHAIN_GREW", f"records were added after {chain.name} had found its end", before)
        self._compare_torn(chain, said, before)

    def _compare_torn(self, chain: FollowedChain, said: Former, before: FollowedChain) -> None:
        line, before.torn = before.torn, None
        if said.torn:
            told = self._verdict.note if before.name in self._known_torn else self._verdict.find
            told("LINE_TORN", f"{chain.name} found {said.torn} bytes of a line in it: a crash, or a cut", before, line)
        raw = line.raw if line else b""
        if (len(raw), hashlib.sha256(raw).hexdigest() if raw else "") != (said.torn, said.torn_hash):
            self._verdict.find("TORN_CHANGED", f"its last bytes are not those that {chain.name} found", before, line)

    def _cover(self, chain: FollowedChain) -> None:
        """A signed first record vouches for the chain before it, that one's for the next, and so on back."""
        while chain.head and chain.former is not None:
            said, chain.former = chain.former, None
            before = self._verdict.chains.get(said.chain)
            if before is None or before.hashes.get(said.sequence) != said.hash:
                return
            if said.by_hand:
                self._take_over(chain, said, before)
            cover(before, said.sequence, chain.head_time)
            chain = before

    def _take_over(self, chain: FollowedChain, said: Former, before: FollowedChain) -> None:
        """What an older broker vouched for without having known it: told, and let stand."""
        if before.torn is not None and before.count == said.sequence:
            self._verdict.note("TORN_LINE", "a crash left half a record, which nobody was told of", before, before.torn)
            before.torn = None
        taken = sum(number <= said.sequence for number in before.pending)
        if taken:
            detail = (
                f"{taken} records of it are vouched for by {chain.name} alone, of an older broker, which found them so"
            )
            self._verdict.note("TAKEN_OVER", detail, before)


def former_of(facts: dict[str, Any]) -> Former | None:
    """What a chain's first record says; None where it names no chain."""
    chain, sequence, digest = (facts.get(f"former_{name}") for name in ("chain", "sequence", "hash"))
    if not (isinstance(chain, str) and type(sequence) is int and isinstance(digest, str)):
        return None
    end, torn = facts.get("former_end"), facts.get("former_torn")
    return Former(
        chain=chain,
        sequence=sequence,
        hash=digest,
        end=end if type(end) is int else None,
        end_hash=str(facts.get("former_end_hash", "")),
        torn=torn if type(torn) is int else 0,
        torn_hash=str(facts.get("former_torn_hash", "")),
        by_hand="former_strays" not in facts,
    )
