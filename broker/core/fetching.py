"""One fetch of many secrets: what each reference came to, and what the audit is told of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from broker.core import tokens
from broker.core.audit import AuditEntry
from broker.core.call import Call
from broker.core.ending import part, readable, shown
from broker.core.errors import BrokerError, InvalidRequest
from broker.core.kinds import LeaseState
from broker.core.kv import Opened, Reference, Secrets, Stored, parse_reference
from broker.core.model import Lease, Session
from broker.core.ports import Store

MAX_REFERENCES = 100
MAX_BYTES = 3 * 1024 * 1024
"""Values in one answer; gRPC's clients take messages of 4 MiB, and what they drop would count as handed out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What one reference gave: a secret with its lease, or (only in a partial fetch) the refusal."""

    text: str
    secret: Opened | None
    lease: Lease | None
    refusal: BrokerError | None


@dataclass(slots=True, kw_only=True)
class Try:
    """One reference, decided on its own; ``call`` is its share of the call, with the decision in it."""

    call: Call
    reference: Reference
    opened: Opened | None = None
    refusal: BrokerError | None = None
    lease: Lease | None = None

    def entry(self, failure: BrokerError | None = None) -> AuditEntry:
        """The audit entry; with ``failure`` nothing was handed out, whatever was decided on this reference."""
        if self.refusal is not None:
            self.call.note(**self.refusal.facts)
            return self.call.outcome(self.refusal.outcome, self.refusal.reason)
        return self.call.outcome("ABORTED", failure.reason) if failure else self.call.outcome()

    @property
    def lacking(self) -> tuple[str, int] | None:
        """The secret and its version that were opened under no lease yet."""
        return (self.reference.name, self.opened.version) if self.opened and not self.lease else None

    def find_lease(self, store: Store, session: str, now: datetime) -> None:
        """Take up the active lease that a session has already on what was opened."""
        if self.opened is None:
            return
        like: dict[str, str | int] = {
            "session": session,
            "state": LeaseState.ACTIVE.value,
            "resource": f"secret/{self.reference.name}",
            "version": self.opened.version,
        }
        found: list[Lease] = readable(lambda: store.page(Lease, limit=1, where=like), [])
        self._take(next((lease for lease in found if lease.expires_at > now), None))

    def lend(self, session: Session, now: datetime, new: dict[tuple[str, int], Lease]) -> None:
        """Put what was opened under a lease: one of the ``new``, or a further one there.

        It is over with the secret, if that comes before the session's last moment.
        """
        if self.opened is None or self.lacking is None:
            return
        if self.lacking not in new:
            new[self.lacking] = Lease(
                id=tokens.new_id(),
                session=session.id,
                principal=session.principal,
                resource=f"secret/{self.reference.name}",
                version=self.opened.version,
                state=LeaseState.ACTIVE,
                created_at=now,
                expires_at=min(session.last_at, self.opened.expires_at or session.last_at),
            )
        self._take(new[self.lacking])

    def _take(self, lease: Lease | None) -> None:
        self.lease = lease
        if lease is not None:
            self.call.note(lease=lease.id, session=lease.session)

    def fetched(self, session: Session | None, now: datetime) -> Fetched:
        """For the caller; the lease ends with the session as that stands now."""
        lease = shown(self.lease, session, now) if self.lease else None
        return Fetched(text=self.reference.text, secret=self.opened, lease=lease, refusal=self.refusal)


def parsed(references: list[str]) -> list[Reference]:
    """1 to 100 references, no two the same; InvalidRequest otherwise, before anything is decided."""
    if not 1 <= len(references) <= MAX_REFERENCES:
        raise InvalidRequest("REFERENCES_INVALID", f"Name between 1 and {MAX_REFERENCES} references in one call.")
    found = [parse_reference(text) for text in references]
    if len({(each.name, each.version, each.field) for each in found}) < len(found):
        raise InvalidRequest("REFERENCES_INVALID", "A reference stands there twice; name each only once.")
    return found


def attempts(call: Call, secrets: Secrets, references: list[Reference]) -> list[Try]:
    """Decide on each reference and open it; a refusal is kept, not raised."""
    # With a spoilt row among them each is looked up alone, so that the others are not refused for it (TL-18).
    found: list[Stored] = readable(lambda: secrets.look_up(references), [])
    if not found:
        return [_attempt(call, each, lambda share, each=each: secrets.read(share, each)) for each in references]  # type: ignore[misc]
    return [
        _attempt(call, each, lambda share, each=each, stored=stored: secrets.open(share, each, stored))  # type: ignore[misc]
        for each, stored in zip(references, found, strict=True)
    ]


def _attempt(call: Call, reference: Reference, read: Callable[[Call], Opened]) -> Try:
    share = part(call)
    try:
        opened = read(share)
    except BrokerError as refusal:
        return Try(call=share, reference=reference, refusal=refusal)
    share.note(version=opened.version)
    return Try(call=share, reference=reference, opened=opened)


def first_refusal(tries: list[Try]) -> BrokerError | None:
    """The refusal of the first reference that was refused."""
    return next((each.refusal for each in tries if each.refusal), None)


def check_size(tries: list[Try]) -> None:
    """Refuse an answer that its caller could not receive; InvalidRequest ``ANSWER_TOO_LARGE``."""
    opened = [each.opened for each in tries if each.opened]
    if sum(len(value) for one in opened for value in one.fields.values()) > MAX_BYTES:
        raise InvalidRequest(
            "ANSWER_TOO_LARGE", f"The values are more than {MAX_BYTES} bytes in all; fetch them in several calls."
        )
