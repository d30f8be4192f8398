"""A login, and its repetition: the session that it opens, once, however often its caller has to send it.

What a caller sends twice under one id is one login. Its session's id is made of that id, the identity token and the
request, so the repetition finds the session by it, whichever process answers and whatever the first answer's fate was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar

from broker.core.call import Call
from broker.core.errors import AlreadyExists, BrokerError, Exhausted, InvalidRequest, Unauthenticated
from broker.core.identity import Proof
from broker.core.kinds import SessionState
from broker.core.leases.ending import Ending, live
from broker.core.model import Session, TrustRule, UsedToken
from broker.core.ports import Now, Store, Write
from broker.core.quota import LeaseQuota
from broker.core.reasons import Reason
from broker.core.sessions import tokens

T = TypeVar("T")

SHORTEST = timedelta(seconds=1)
REPEATABLE = timedelta(minutes=2)
"""How long a login can be repeated: longer than a caller goes on trying, as a rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A new session and its token, which is shown once. ``repr`` hides the token."""

    session: Session
    token: str

    def __repr__(self) -> str:
        return f"Opening({self.session.id})"


@dataclass(slots=True, kw_only=True)
class Login:
    """A session that is to be opened. ``call``: the login's own share of the call, with its decision."""

    call: Call
    opening: Opening
    used: UsedToken | None  # with a rule that takes each identity token once
    repeatable: bool  # its caller gave it an id, and so its session has one that only that caller's repetition gives
    again: bool = False  # this is a repetition: the session is there


class TakenError(Exception):
    """A repeatable login's session, or what opens it once, is there already."""


class Logins:
    """Prepares logins, and writes their sessions down."""

    def __init__(self, store: Store, now: Now, limits: LeaseQuota, ending: Ending) -> None:
        self._store = store
        self._now = now
        self._limits = limits
        self._ending = ending

    def prepared(self, call: Call, ttl: timedelta | None, own_id: str) -> Login:
        """The login of a call by an identity token; InvalidRequest, Unauthenticated, Exhausted ``SESSION_QUOTA``.

        ``own_id``: the one that its caller gave it, or "".
        """
        principal, proof = call.principal, call.principal.proof
        if proof is None:
            raise InvalidRequest(
                Reason.IDENTITY_TOKEN_MISSING, "Only an identity token opens a session; send the one that the CI gives."
            )
        call.note(trust_rule=proof.rule, issuer=proof.issuer, subject=proof.subject, token_id=proof.token_id)
        rule = self._store.get(TrustRule, proof.rule)
        if rule is None or rule.revision != proof.rule_revision:
            raise Unauthenticated(Reason.TRUST_RULE_CHANGED, "The trust rule was changed at this moment; log in again.")
        token = (proof.issuer, principal.credential)
        name = tokens.id_of("login", *token, own_id, call.digest) if own_id else tokens.new_id()
        login = Login(
            call=call,
            opening=self._opening(name, str(principal), proof, rule, ttl),
            used=_used(rule, proof),
            repeatable=bool(own_id),
        )
        self._check_room(str(principal), login)
        call.note(session=name)
        return login

    def _check_room(self, principal: str, login: Login) -> None:
        if self._store.count(Session, {"principal": principal, "state": "active"}) < self._limits.per_principal:
            return
        login.again = self.is_there(login)
        if not login.again:
            raise Exhausted(
                Reason.SESSION_QUOTA,
                f"This pipeline has {self._limits.per_principal} sessions already, the most that one may have; they "
                f"lapse by themselves, and an operator ends them with `broker session revoke --principal {principal}` "
                "or raises leases_per_pipeline under [sessions].",
            )

    def _opening(self, name: str, principal: str, proof: Proof, rule: TrustRule, ttl: timedelta | None) -> Opening:
        now, most = self._now(), timedelta(seconds=rule.max_session_seconds)
        token = tokens.new_token(name)
        session = Session(
            id=name,
            token_hash=tokens.hash_of(token),
            principal=principal,
            rule=rule.name,
            rule_revision=rule.revision,
            issuer=proof.issuer,
            subject=proof.subject,
            claims=proof.claims,
            state=SessionState.ACTIVE,
            created_at=now,
            expires_at=now + min(self.length(ttl), most),
            last_at=now + most,
        )
        return Opening(session=session, token=token)

    def begun(self, write: Write, login: Login) -> Session:
        """The login's session: added, or, for a repetition, as it is there, held, and with a new token."""
        if not login.again:
            _add(write, login)
            return login.opening.session
        there, wanted = self._ending.lock(write, login.opening.session.id), login.opening.session
        if there is None or not self._same_login(there, wanted):
            raise _replayed(login)
        # The token is not kept, so the first one cannot be given again. A job that has it notices that it is void.
        fresh = write.replace(there, replace(there, token_hash=wanted.token_hash))
        login.opening = Opening(session=fresh, token=login.opening.token)
        write.note(replayed=1)
        return fresh

    def _same_login(self, there: Session, wanted: Session) -> bool:
        """Whether a session stands as its login left it a moment ago; its id tells that it is this login's."""
        now = self._now()
        return (
            live(there, now)
            and now - there.created_at <= REPEATABLE
            and (there.principal, there.rule, there.rule_revision)
            == (wanted.principal, wanted.rule, wanted.rule_revision)
            and there.expires_at - there.created_at == wanted.expires_at - wanted.created_at  # never renewed
        )

    def length(self, ttl: timedelta | None) -> timedelta:
        """How long a session is to live; InvalidRequest ``DURATION_INVALID``."""
        if ttl is not None and ttl < SHORTEST:
            raise InvalidRequest(Reason.DURATION_INVALID, "The session's length is less than a second; ask for more.")
        return self._limits.usual if ttl is None else ttl

    def is_there(self, login: Login) -> bool:
        """Whether the session of a repeatable login is there already."""
        return login.repeatable and self._store.get(Session, login.opening.session.id) is not None


def carried_out(login: Login | None, act: Callable[[], T]) -> T:
    """Carry a login out; when its session is there already, as the repetition that it then is."""
    try:
        return act()
    except TakenError:
        assert login is not None  # noqa: S101 (nothing else takes)
        login.again = True
        return act()


def hidden_id(call: Call) -> str:
    """The caller's id for this login, which is for nobody else to see: it is taken off what the audit is told."""
    own_id, call.request_id = call.request_id, ""
    return own_id


def _add(write: Write, login: Login) -> None:
    try:
        if login.used is not None:
            write.add(login.used)
        write.add(login.opening.session)
    except AlreadyExists as error:
        raise (TakenError() if login.repeatable else _replayed(login)) from error


def _replayed(login: Login) -> BrokerError:
    if login.used is None:
        return AlreadyExists(
            Reason.REQUEST_ID_REUSED, "The login of this request id was a while ago; send a fresh UUID with each login."
        )
    return Unauthenticated(
        Reason.TOKEN_REPLAYED,
        "This identity token has opened its one session already; get a fresh one from the CI for each login.",
    )


def _used(rule: TrustRule, proof: Proof) -> UsedToken | None:
    if not rule.single_use:
        return None
    if not proof.token_id:
        raise Unauthenticated(
            Reason.TOKEN_NOT_SINGLE_USE,
            "The trust rule takes each identity token once, and this one carries no id (jti) to know it by; for an "
            "issuer that gives none, the operator who keeps the rules makes a rule with `single_use: false`.",
        )
    return UsedToken(issuer=proof.issuer, jti=proof.token_id, until=proof.expires_at)
