"""Sessions: what a login gives, renewed while the job lives; when one ends, everything it was given is revoked."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import timedelta

from broker.core import receipts
from broker.core.call import Call
from broker.core.errors import (
    BrokerError,
    Exhausted,
    InvalidRequest,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from broker.core.kinds import LeaseState, SessionState
from broker.core.leases.ending import BATCH, Ending, Work, ended_lease, entry_of, held, live, part
from broker.core.model import Principal, Secret, Session, TrustRule
from broker.core.once import closing, last_write, record
from broker.core.page import Page
from broker.core.policy.guard import BROKER, Guard, of_secret
from broker.core.ports import Now, Store, Write
from broker.core.quota import LeaseQuota, Tally
from broker.core.reasons import Reason
from broker.core.rows import readable
from broker.core.secrets.lifecycle import Secrets
from broker.core.sessions import tokens
from broker.core.sessions.fetching import Fetched, Try, attempts, check_size, lend, parsed, refusal, take_up
from broker.core.sessions.login import Login, Logins, Opening, TakenError, carried_out, hidden_id

__all__ = ["Fetched", "LeaseQuota", "Opening", "Sessions"]

NO_HASH = bytes(32)


class Sessions:
    """The noun behind SessionService. Each method checks the permission first and raises only BrokerError."""

    def __init__(self, store: Store, secrets: Secrets, guard: Guard, now: Now, limits: LeaseQuota) -> None:
        self._store = store
        self._secrets = secrets
        self._guard = guard
        self._now = now
        self._limits = limits
        self._ending = Ending(store, now)
        self._logins = Logins(store, now, limits, self._ending)
        self._leases = Tally(store, now, limits)

    def login(self, call: Call, ttl: timedelta | None) -> Opening:
        """Open a session for ``call.principal.proof``, or, as a repetition of the call that did, give it once more.

        InvalidRequest ``IDENTITY_TOKEN_MISSING``; Unauthenticated ``TOKEN_REPLAYED`` for a used single-use token,
        ``TRUST_RULE_CHANGED``; Exhausted ``SESSION_QUOTA``.
        """
        own_id = hidden_id(call)
        self._guard.check(call, BROKER)
        login = self._logins.prepared(call, ttl, own_id)
        with closing(call):
            carried_out(login, lambda: self._opened(login))
        return login.opening

    def fetch(
        self, call: Call, references: list[str], *, partial: bool, ttl: timedelta | None
    ) -> tuple[list[Fetched], Opening | None]:
        """All the secrets, their leases and, when the call carries an identity token, the session: one durable write.

        Each reference is decided and audited on its own (AZ-08). Unless ``partial``, the first refusal refuses all and
        nothing is used up. An operator has neither session nor leases; a session has one lease on each secret version.
        """
        own_id = hidden_id(call)
        wanted = parsed(references)
        login = self._login_of(call, ttl, own_id)
        tries = attempts(call, self._secrets, wanted)
        refused = None if partial else refusal(tries)
        try:
            if refused is not None:
                raise refused
            check_size(tries)
            if call.principal.method == "session":
                for each in tries:
                    each.find_lease(self._store, call.principal.credential, self._now())
            session = carried_out(login, lambda: self._with_room(call, login, tries))
        except Unavailable:
            raise
        except BrokerError as failure:
            self._write_down(call, login, tries, failure)
            raise
        self._secrets.was_read(str(call.principal), [each.reference.name for each in tries if each.opened])
        now = self._now()
        return [each.fetched(session, now) for each in tries], login.opening if login else None

    def renew(self, call: Call, ttl: timedelta | None) -> Session:
        """Move the end of the caller's own session, at most to its last moment (TL-01).

        Re-authorised by today's trust rule and policy (TL-15): refused when the rule is gone or changed; leases on what
        the policy does not grant any more are revoked.
        """
        self._guard.check(call, BROKER)
        name = _own(call)
        length = self._logins.length(ttl)
        with last_write(self._store, call) as write:
            session = self._held(write, name, call.principal)
            self._check_rule(session)
            self._drop_forbidden(write, call, session)
            now = self._now()
            end = now + min(length, session.last_at - now)  # in this order nothing can overflow
            return write.replace(session, replace(session, expires_at=end))

    def end(self, call: Call) -> None:
        """End the caller's own session and revoke all its leases; ending it twice is the same as once (TL-06)."""
        self._guard.check(call, BROKER)
        name = _own(call)
        with last_write(self._store, call) as write:
            session = self._ending.lock(write, name)
            if session is not None and session.state is SessionState.ACTIVE:
                write.note(count=self._ending.session(write, session, LeaseState.REVOKED))

    def page(self, call: Call, principal: str, after: tuple[str | int, ...], limit: int) -> Page[Session]:
        """Sessions by id, of one principal or of all; one whose time, or trust rule, is over shows as ended (AZ-24)."""
        self._guard.check(call, BROKER)
        where: dict[str, str | int] = {"principal": principal} if principal else {}
        items = self._store.page(Session, after=after, limit=limit, where=where, sound_only=True)
        return Page(items=self._ending.standing(items), next=(items[-1].id,) if len(items) == limit else ())

    def revoke(self, call: Call, *, session: str = "", principal: str = "", claim: str = "") -> int:
        """End one session, all of a principal, or all of "issuer claim=value"; how many were active.

        NotFound ``SESSION_NOT_FOUND`` for an id that never was; one that has ended already is no error.
        """
        if sum(map(bool, (session, principal, claim))) != 1:
            raise InvalidRequest(Reason.SELECTION_INVALID, "Name one session, one principal or one claim.")
        where, fits = _selection(principal, claim)
        self._guard.check(call, BROKER)
        ids = self._one(session) if session else self._several(where, fits)
        if call.validate_only:
            return sum(readable(lambda one=one: _active(self._store.get(Session, one)), False) for one in ids)  # type: ignore[misc]
        with self._store.write(call.intent()) as write:
            receipt = receipts.replay(write, call)
        if receipt is not None:
            return receipt.version
        ended = self._ending.all(call, ids, lambda _: True)
        call.note(count=ended)
        with last_write(self._store, call) as write:
            receipts.keep(write, call, "sessions", ended)
        return ended

    def authenticate(self, token: str, *, ended: bool = False) -> Principal:
        """The principal of an active session by its token; Unauthenticated ``SESSION_INVALID`` whatever the fault is.

        ``ended``: take the token of a session that is over as well, for the one who ends it a second time.
        """
        name = tokens.session_of(token)
        session = self._found(name)
        if session is not None and not _opens(session, token):
            # What was kept of it may be older than the token that a repetition of its login was given elsewhere.
            session = readable(lambda: self._store.get(Session, name), None)
        same = _opens(session, token)
        if session is None or not same or not (ended or live(session, self._now())):
            raise _invalid()
        kind, _, name = session.principal.partition("/")
        return Principal(kind=kind, name=name, method="session", credential=session.id)

    def chores(self) -> Iterator[Work]:
        """What the background loop has to do now: end what is over, forget what nobody needs any more."""
        return self._ending.chores()

    def _found(self, name: str) -> Session | None:
        """As it was at most a second ago, if alive then; a change that gives it something new holds its row first."""
        found = readable(lambda: self._store.recent(Session, name), None) if name else None
        if found is None or live(found, self._now()):
            return found
        return readable(lambda: self._store.get(Session, name), None)  # another process may have renewed it

    def _held(self, write: Write, name: str, principal: Principal) -> Session:
        """The caller's session, locked, if it is still alive."""
        session = self._ending.lock(write, name)
        if session is None or not live(session, self._now()) or session.principal != str(principal):
            raise _invalid()
        return session

    def _login_of(self, call: Call, ttl: timedelta | None, own_id: str) -> Login | None:
        """The login within a fetch, decided on as a login (AZ-05); None where no identity token was sent."""
        if call.principal.proof is None:
            return None
        share = part(call, "SessionService/Login")
        try:
            self._guard.check(share, BROKER)
            return self._logins.prepared(share, ttl, own_id)
        except Unavailable:
            raise
        except BrokerError as failure:
            record(self._store, call, share.outcome(failure.outcome, failure.reason))
            raise

    def _opened(self, login: Login) -> Session:
        with self._store.write(login.call.outcome()) as write:
            return self._logins.begun(write, login)

    def _with_room(self, call: Call, login: Login | None, tries: list[Try]) -> Session | None:
        lacking = len(set(filter(None, (each.lacking for each in tries))))
        try:
            with self._room(call, 0 if login and login.again else lacking):
                return self._issue(call, login, tries)
        except Exhausted:
            there = (
                login and login.repeatable and not login.again and self._store.get(Session, login.opening.session.id)
            )
            if not there:
                raise
            raise TakenError from None  # its leases are there as well, and need no room

    def _room(self, call: Call, more: int) -> AbstractContextManager[None]:
        """Room for so many leases of the caller's, if it is one that has leases."""
        principal = call.principal
        if not more or (principal.proof is None and principal.method != "session"):
            return nullcontext()
        return self._leases.room(str(principal), more)

    def _issue(self, call: Call, login: Login | None, tries: list[Try]) -> Session | None:
        """Write the session, the leases and every decision down; nothing is handed out before that is durable."""
        name = call.principal.credential if call.principal.method == "session" else ""
        with closing(call):
            if login or (name and any(each.lacking for each in tries)):
                return self._lent(call, login, tries)
            self._store.record(*(each.entry() for each in tries))
            # Looked at last: no row is held here, and a caller that ended the session meanwhile may be told so.
            return self._holding(name) if name else None

    def _holding(self, name: str) -> Session:
        session = self._found(name)
        if session is None or not live(session, self._now()):
            raise _invalid()
        self._check_rule(session)
        return session

    def _lent(self, call: Call, login: Login | None, tries: list[Try]) -> Session:
        with self._store.write(login.call.outcome() if login else tries[0].entry()) as write:
            if login:
                session = self._logins.begun(write, login)
            else:
                session = self._held(write, call.principal.credential, call.principal)
                self._check_rule(session)
            if login is None or login.again:
                take_up(tries, self._ending.leases(write, session.id), self._now())
            write.add(*lend(tries, session, self._now()))
            write.note(**({} if login else tries[0].lent))
            for each in tries[0 if login else 1 :]:
                write.also(each.entry())
        return session

    def _write_down(self, call: Call, login: Login | None, tries: list[Try], failure: BrokerError) -> None:
        """Every decision of a fetch that gave nothing, in one durable write."""
        opened = [login.call.outcome(failure.outcome, failure.reason)] if login else []
        record(self._store, call, *opened, *(each.entry(failure) for each in tries))

    def _check_rule(self, session: Session) -> None:
        # What was kept of the rule may be older than a session that another process has opened with the newest.
        if not any(held(session, read(TrustRule, session.rule)) for read in (self._store.recent, self._store.get)):
            raise Unauthenticated(
                Reason.TRUST_RULE_CHANGED,
                "The trust rule that opened this session is gone or changed; a new login goes by the rules as they "
                "are now.",
            )

    def _drop_forbidden(self, write: Write, call: Call, session: Session) -> None:
        allowed: dict[str, bool] = {}
        for lease in self._ending.leases(write, session.id):
            name = lease.resource.removeprefix("secret/")
            if name not in allowed:
                resource = of_secret(name, self._store.get(Secret, name))
                allowed[name] = self._guard.permits(call.principal, "FetchSecrets", resource)
            if not allowed[name]:
                write.replace(lease, ended_lease(lease, LeaseState.REVOKED, self._now()))
                write.also(entry_of(call, lease.resource, lease=lease.id, session=session.id, version=lease.version))

    def _one(self, session: str) -> Iterator[str]:
        if self._store.get(Session, session) is None:
            raise NotFound(
                Reason.SESSION_NOT_FOUND, "There is no such session; `broker session list` shows those there are."
            )
        return iter([session])

    def _several(self, where: dict[str, str], fits: Callable[[Session], bool]) -> Iterator[str]:
        after: tuple[str, ...] = ()
        where = {**where, "state": "active"}
        # A damaged row holds up no revocation, and nobody is let in by one (TL-18).
        while found := self._store.page(Session, after=after, limit=BATCH, where=where, sound_only=True):
            after = (found[-1].id,)
            yield from (session.id for session in found if fits(session))


def _own(call: Call) -> str:
    """The session that the call's own token names: no request can name another (TL-04, AZ-06)."""
    if call.principal.method != "session":
        raise InvalidRequest(Reason.SESSION_TOKEN_MISSING, "Only the token of a session acts on it; send that token.")
    call.note(session=call.principal.credential)
    return call.principal.credential


def _opens(session: Session | None, token: str) -> bool:
    return hmac.compare_digest(session.token_hash if session else NO_HASH, tokens.hash_of(token))


def _invalid() -> Unauthenticated:
    return Unauthenticated(
        Reason.SESSION_INVALID,
        "The session token is not valid, or its session is over: it lapsed or was ended; a new login opens a new one.",
    )


def _active(session: Session | None) -> bool:
    return session is not None and session.state is SessionState.ACTIVE


def _selection(principal: str, claim: str) -> tuple[dict[str, str], Callable[[Session], bool]]:
    """What to look for in the store, and what else must hold."""
    if not claim:
        return ({"principal": principal} if principal else {}), lambda _: True
    issuer, _, wanted = claim.partition(" ")
    name, equals, value = wanted.partition("=")
    if not (issuer and name and equals):
        raise InvalidRequest(Reason.SELECTION_INVALID, 'Write the claim as "issuer claim=value".')
    return {"issuer": issuer}, lambda session: {"sub": session.subject, **session.claims}.get(name) == value
