"""Sessions: what a login gives, renewed while the job lives; when one ends, everything it was given is revoked."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from broker.core import ports
from broker.core.call import Call
from broker.core.errors import BrokerError
from broker.core.guard import Guard
from broker.core.kv import Opened, Secrets
from broker.core.model import Lease, Principal, Session
from broker.core.page import Page


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A new session and its token, which is shown once. ``repr`` hides the token."""

    session: Session
    token: str

    def __repr__(self) -> str:
        return f"Opening({self.session.id})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What one reference gave: a secret with its lease, or (only in a partial fetch) the refusal."""

    text: str
    secret: Opened | None
    lease: Lease | None
    refusal: BrokerError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Leases at once, for one principal and in all; the length of a session that does not ask for one."""

    per_principal: int = 1000
    in_all: int = 100_000
    usual: timedelta = timedelta(minutes=5)


class Sessions:
    """The noun behind SessionService."""

    def __init__(self, store: ports.Store, secrets: Secrets, guard: Guard, now: ports.Now, limits: Limits) -> None:
        raise NotImplementedError

    def login(self, call: Call, ttl: timedelta | None) -> Opening:
        """Open a session for ``call.principal.proof``; Unauthenticated ``TOKEN_REPLAYED`` for a used single-use token."""
        raise NotImplementedError

    def fetch(
        self, call: Call, references: list[str], *, partial: bool, ttl: timedelta | None
    ) -> tuple[list[Fetched], Opening | None]:
        """All the secrets, their leases and, when the call carries an identity token, the session: one durable write."""
        raise NotImplementedError

    def renew(self, call: Call, ttl: timedelta | None) -> Session:
        """Move the end of the caller's session, at most to its last moment; re-authorised by today's rule (TL-15)."""
        raise NotImplementedError

    def end(self, call: Call) -> None:
        raise NotImplementedError

    def page(self, call: Call, principal: str, after: tuple[str | int, ...], limit: int) -> Page[Session]:
        raise NotImplementedError

    def revoke(self, call: Call, *, session: str = "", principal: str = "", claim: str = "") -> int:
        raise NotImplementedError

    def authenticate(self, token: str) -> Principal:
        """The principal of an active session by its token; Unauthenticated ``SESSION_…`` with one text for all faults."""
        raise NotImplementedError
