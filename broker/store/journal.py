"""The audit journal of this process: callers wait, one thread writes, and those that wait together share one fdatasync.

The thread is not one of the callers, because a disk that does not answer holds the thread that asked it for as long as
it likes; a caller gives up after ``patience`` and its entry is withdrawn, unless it is being written at that moment.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from broker.core.entries import AuditEntry, Phase
from broker.core.errors import BrokerError, Unavailable
from broker.core.model import AuditHead
from broker.core.ports import Now
from broker.core.reasons import Reason
from broker.store.chain import Chain, Tail
from broker.store.former import End, Former, former
from broker.store.private import private_folder

ENDED = "audit/ended"
"""The resource of the record that a chain ends with when its process ends in order."""

MAX_WAITING = 4096
"""Entries that wait for the disk at most; the next ones are refused at once."""


class _Ticket:
    """One caller's records; ``done`` is locked until they are durable or have failed, all alike."""

    __slots__ = ("done", "fault", "records", "told", "withdrawn")

    def __init__(self, *records: AuditEntry | AuditHead) -> None:
        self.records = records  # none: only tell whether the journal is writable
        self.fault: BaseException | None = None
        self.withdrawn = self.told = False
        self.done = threading.Lock()
        self.done.acquire()

    def finish(self, fault: BaseException | None) -> None:
        """Only the first word counts."""
        if not self.told:
            self.told, self.fault = True, fault
            self.done.release()


class Journal:
    """Opens a new chain at each start, and when the files of the old one can no longer be trusted.

    ``patience``: seconds that a caller waits for its entries to be durable. ``vouched``: how far the newest chain
    before this process is signed; the first record names that, and no more.
    """

    def __init__(
        self,
        folder: Path,
        replica: str,
        now: Now,
        file_bytes: int,
        *,
        patience: float,
        vouched: Tail | None = None,
        begin: bool = True,
    ) -> None:
        private_folder(folder)
        self._folder, self._replica, self._now, self._file_bytes = folder, replica, now, file_bytes
        self._patience, self._vouched = patience, vouched
        self._ended: End | None = None
        self.former = Former()  # what the present chain's first record says
        self._finished = False
        self._bell = threading.Condition()
        self._waiting: list[_Ticket] = []
        self._closed = False
        self._chain: Chain | None = None
        self._tails: dict[str, Tail] = {}
        self._signed: dict[str, int] = {}
        self._writer = threading.Thread(target=self._write, name="audit-journal", daemon=True)
        self._writer.start()
        if not begin:  # the first record will
            return
        try:
            self.check()
        except BaseException:
            self.close()
            raise

    def append(self, record: AuditEntry | AuditHead) -> None:
        """Return when the record is durable; Unavailable ``AUDIT_UNAVAILABLE`` if it is not in time.

        A head of a chain other than the present one has no place in it and is left out.
        """
        self._submit(_Ticket(record))

    def append_all(self, entries: Sequence[AuditEntry], waited: float = 0.0) -> None:
        """As ``append``, for entries that stand one after the other, or not at all.

        ``waited``: seconds that the caller has waited already, which are taken off.
        """
        self._submit(_Ticket(*entries), waited)

    def check(self) -> None:
        """Return if the journal is writable; else Unavailable ``AUDIT_UNAVAILABLE``."""
        self._submit(_Ticket())

    def heads(self) -> list[AuditHead]:
        """See ``Store.heads``."""
        now = self._now()
        return [
            AuditHead(chain=tail.chain, sequence=tail.sequence, hash=tail.hash, signed_at=now, signature=b"")
            for tail in list(self._tails.values())
            if tail.entry > self._signed.get(tail.chain, 0)
        ]

    def signed(self, head: AuditHead) -> None:
        """Remember that a chain is signed up to this head."""
        with self._bell:
            self._signed[head.chain] = max(head.sequence, self._signed.get(head.chain, 0))

    def finish(self) -> None:
        """Let the chain end with a record that says so: whatever entry stands behind it is not the broker's.

        From here on entries are refused, heads are not. A chain that was not begun has no end either.
        """
        if self._chain is None:
            return
        ticket = _Ticket(_own(self._now, ENDED, {}))
        with self._bell:
            self._check_open(ticket)
            self._finished = True
            self._waiting.append(ticket)
            self._bell.notify()
        self._wait(ticket)

    def close(self) -> None:
        """Write what waits and stop; a disk that hangs is left behind."""
        with self._bell:
            self._closed = True
            self._bell.notify()
        self._writer.join(self._patience)

    def _submit(self, ticket: _Ticket, waited: float = 0.0) -> None:
        with self._bell:
            self._check_open(ticket)
            self._waiting.append(ticket)
            self._bell.notify()
        self._wait(ticket, waited)

    def _check_open(self, ticket: _Ticket) -> None:
        closed = self._closed or (self._finished and any(isinstance(each, AuditEntry) for each in ticket.records))
        if closed or len(self._waiting) >= MAX_WAITING:
            raise _unavailable("is closed" if closed else "has too much waiting")

    def _wait(self, ticket: _Ticket, waited: float = 0.0) -> None:
        if not ticket.done.acquire(timeout=max(0.0, self._patience - waited)):
            ticket.withdrawn = True
            raise _unavailable("does not answer in time")
        if isinstance(ticket.fault, OSError):
            raise _unavailable(f"reports: {os.strerror(ticket.fault.errno or 0)}") from ticket.fault
        if isinstance(ticket.fault, BrokerError):
            raise _unavailable("is not private or not reachable any more") from ticket.fault
        if isinstance(ticket.fault, Exception):
            raise ticket.fault
        if ticket.fault is not None:
            raise _unavailable("broke off") from ticket.fault

    def _write(self) -> None:
        while tickets := self._next():
            try:
                self._settle([ticket for ticket in tickets if not ticket.withdrawn])
            except BaseException as fault:  # noqa: BLE001 - whatever it is, the thread lives, and nobody waits in vain
                self._leave()
                _settle_all(tickets, fault)
        if self._chain is not None:
            self._chain.close()

    def _next(self) -> list[_Ticket]:
        with self._bell:
            self._bell.wait_for(lambda: self._waiting or self._closed)
            tickets, self._waiting = self._waiting, []
            return tickets

    def _settle(self, tickets: list[_Ticket]) -> None:
        """Write the tickets' records together; each caller learns how it went."""
        try:
            chain = self._chain or self._begin()
        except BaseException as fault:  # noqa: BLE001 - whatever it is, the callers are told and the thread lives
            _settle_all(tickets, fault)
            return
        good = [ticket for ticket in tickets if _staged(chain, ticket)]
        try:
            chain.commit()
        except BaseException as fault:  # noqa: BLE001 - as above
            self._take_back(chain, fault)
            _settle_all(good, fault)
            return
        self._tails[chain.name] = chain.durable
        for ticket in good:
            ticket.finish(_doubt(chain) if not ticket.records else None)

    def _begin(self) -> Chain:
        """A new chain, durable with its first record, which says what is vouched for of the chain before."""
        private_folder(self._folder)
        now = self._now()
        found = former(self._folder, self._replica, self._vouched, self._ended)
        chain = Chain(self._folder, self._replica, now, self._file_bytes)
        chain.stage(_own(self._now, f"audit/{chain.name}", found.facts))
        try:
            chain.commit()
        except BaseException:
            chain.discard()
            raise
        self._chain, self._tails[chain.name], self.former = chain, chain.durable, found
        return chain

    def _take_back(self, chain: Chain, fault: BaseException) -> None:
        try:
            chain.restore(fault)
        except BaseException as last:  # noqa: BLE001 - whatever it is
            # What others did to the file is not how it ended; a failing disk may have kept more than it confirmed.
            theirs = isinstance(last, OSError) and last.errno == errno.ESTALE
            self._leave(End(sequence=chain.durable.sequence, hash=chain.durable.hash) if theirs else None)

    def _leave(self, ended: End | None = None) -> None:
        """End the chain here: its file may hold lines that nobody was told of. ``ended``: how it really ended."""
        chain, self._chain, self._ended = self._chain, None, ended
        if chain is not None:
            self._vouched = chain.durable
            with suppress(OSError):  # closed or not, nothing is written to it any more
                chain.close()


def _staged(chain: Chain, ticket: _Ticket) -> bool:
    before = chain.mark()
    try:
        for record in ticket.records:
            if not isinstance(record, AuditHead) or record.chain == chain.name:
                chain.stage(record)
    except BaseException as fault:  # noqa: BLE001 - a record that cannot be encoded is its own caller's fault alone
        chain.unstage(before)
        ticket.finish(fault)
        return False
    return True


def _doubt(chain: Chain) -> OSError | None:
    """Why the next record could not be written, although the last one was."""
    try:
        chain.check()
    except OSError as fault:
        return fault
    return None


def _settle_all(tickets: list[_Ticket], fault: BaseException | None) -> None:
    for ticket in tickets:
        ticket.finish(fault)


def _own(now: Now, resource: str, facts: dict[str, str | int]) -> AuditEntry:
    """A record of the journal's own."""
    return AuditEntry(
        time=now(),
        phase=Phase.OUTCOME,
        call_id="",
        rpc="-",
        request_id="",
        principal="",
        authn="",
        credential="",
        peer="",
        resource=resource,
        decision="",
        policies=(),
        policy_version=0,
        outcome="ok",
        reason="",
        facts=facts,
    )


def _unavailable(what: str) -> Unavailable:
    return Unavailable(
        Reason.AUDIT_UNAVAILABLE,
        f"The audit journal {what}, so the call was refused; see that its volume has room and is writable.",
    )
