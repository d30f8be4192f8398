"""One fetch of many secrets: what each reference came to, and what the audit is told of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from broker.core.call import Call
from broker.core.entries import AuditEntry
from broker.core.errors import BrokerError, InvalidRequest, Outcome, together
from broker.core.kinds import LeaseState
from broker.core.leases.ending import part, shown
from broker.core.model import Lease, Session
from broker.core.ports import Store
from broker.core.reasons import Reason
from broker.core.rows import readable
from broker.core.secrets.lifecycle import Opened, Reference, Secrets, Stored, parse_reference
from broker.core.sessions import tokens

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
        return self.call.outcome(Outcome.ABORTED, failure.reason) if failure else self.call.outcome()

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
        self.call.note(**self.lent)

    @property
    def lent(self) -> dict[str, str]:
        """For the audit: the lease that this is under, and its session; {} without one."""
        return {"lease": self.lease.id, "session": self.lease.session} if self.lease else {}

    def take_up(self, held: Mapping[tuple[str, int], Lease]) -> None:
        """The lease among those that the session has, by secret and version; what was found before counts no more."""
        if self.opened is not None:
            self._take(held.get((self.reference.name, self.opened.version)))

    def fetched(self, session: Session | None, now: datetime) -> Fetched:
        """For the caller; the lease ends with the session as that stands now."""
        lease = shown(self.lease, session, now) if self.lease else None
        return Fetched(text=self.reference.text, secret=self.opened, lease=lease, refusal=self.refusal)


def take_up(tries: list[Try], active: list[Lease], now: datetime) -> None:
    """Decide again which leases there are, now that the session is held.

    What was found before may have been revoked since, and another fetch of the session may have added what was not.
    """
    held = {(one.resource.removeprefix("secret/"), one.version): one for one in active if one.expires_at > now}
    for each in tries:
        each.take_up(held)


def lend(tries: list[Try], session: Session, now: datetime) -> list[Lease]:
    """New leases of the session, one for each version of a secret that was opened under none."""
    new: dict[tuple[str, int], Lease] = {}
    for each in tries:
        each.lend(session, now, new)
    return list(new.values())


def parsed(references: list[str]) -> list[Reference]:
    """1 to 100 references, no two the same; InvalidRequest otherwise, before anything is decided."""
    if not 1 <= len(references) <= MAX_REFERENCES:
        raise InvalidRequest(Reason.REFERENCES_INVALID, f"Name between 1 and {MAX_REFERENCES} references in one call.")
    found: list[Reference] = []
    refusals: dict[int, BrokerError] = {}
    for place, text in enumerate(references):
        try:
            found.append(parse_reference(text))
        except InvalidRequest as refusal:
            refusals[place] = refusal
    if refusals:
        raise together(refusals, "references", len(references))
    if len({(each.name, each.version, each.field) for each in found}) < len(found):
        raise InvalidRequest(Reason.REFERENCES_INVALID, "A reference stands there twice; name each only once.")
    return found


def attempts(call: Call, secrets: Secrets, references: list[Reference]) -> list[Try]:
    """Decide on each reference and open it; a refusal is kept, not raised."""
    # With a damaged row among them each is looked up alone, so that the others are not refused for it (TL-18).
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


def refusal(tries: list[Try]) -> BrokerError | None:
    """The one refusal for all the references that are refused, each by its place; None when there is none."""
    refusals = {place: each.refusal for place, each in enumerate(tries) if each.refusal}
    return together(refusals, "references", len(tries)) if refusals else None


def check_size(tries: list[Try]) -> None:
    """Refuse an answer that its caller could not receive; InvalidRequest ``ANSWER_TOO_LARGE``."""
    opened = [each.opened for each in tries if each.opened]
    if sum(len(value) for one in opened for value in one.fields.values()) > MAX_BYTES:
        raise InvalidRequest(
            Reason.ANSWER_TOO_LARGE, f"The values are more than {MAX_BYTES} bytes in all; fetch them in several calls."
        )
