"""SessionService: decode, one call, encode."""

# ruff: noqa: D102 (the contract of each RPC stands in its .proto file)

from __future__ import annotations

from broker_api.v1 import sessions_pb2 as wire

from broker.core.call import Call
from broker.core.model import Session
from broker.core.sessions.lifecycle import Fetched, Sessions
from broker.rpc import codec, leases
from broker.rpc.pages import PageTokens, page_size


class SessionMethods:
    """The RPCs of SessionService."""

    def __init__(self, sessions: Sessions, pages: PageTokens) -> None:
        self._sessions = sessions
        self._pages = pages

    def login(self, call: Call, request: wire.LoginRequest) -> wire.LoginResponse:
        opening = self._sessions.login(call, codec.duration(request, "ttl"))
        return wire.LoginResponse(session=_session(opening.session), session_token=opening.token)

    def fetch_secrets(self, call: Call, request: wire.FetchSecretsRequest) -> wire.FetchSecretsResponse:
        found, opening = self._sessions.fetch(
            call, list(request.references), partial=request.partial, ttl=codec.duration(request, "ttl")
        )
        return wire.FetchSecretsResponse(
            secrets=[_fetched(each) for each in found],
            session=_session(opening.session) if opening else None,
            session_token=opening.token if opening else "",
        )

    def renew_session(self, call: Call, request: wire.RenewSessionRequest) -> wire.RenewSessionResponse:
        return wire.RenewSessionResponse(session=_session(self._sessions.renew(call, codec.duration(request, "ttl"))))

    def end_session(self, call: Call, _request: wire.EndSessionRequest) -> wire.EndSessionResponse:
        self._sessions.end(call)
        return wire.EndSessionResponse()

    def list_sessions(self, call: Call, request: wire.ListSessionsRequest) -> wire.ListSessionsResponse:
        query = (request.principal,)
        after = self._pages.open(call, query, request.page_token)
        page = self._sessions.page(call, request.principal, after, page_size(request.page_size))
        return wire.ListSessionsResponse(
            sessions=[_session(each) for each in page.items], next_page_token=self._pages.token(call, query, page.next)
        )

    def revoke_sessions(self, call: Call, request: wire.RevokeSessionsRequest) -> wire.RevokeSessionsResponse:
        ended = self._sessions.revoke(call, session=request.session, principal=request.principal, claim=request.claim)
        return wire.RevokeSessionsResponse(ended=ended)


def _fetched(each: Fetched) -> wire.FetchedSecret:
    opened, refusal = each.secret, each.refusal
    return wire.FetchedSecret(
        reference=each.text,
        version=opened.version if opened else 0,
        fields=opened.fields if opened else {},
        lease=leases.to_wire(each.lease) if each.lease else None,
        refusal=f"{refusal.reason}: {refusal.message}" if refusal else "",
    )


def _session(each: Session) -> wire.Session:
    return wire.Session(
        id=each.id,
        principal=each.principal,
        trust_rule=each.rule,
        issuer=each.issuer,
        subject=each.subject,
        state=codec.SESSION_STATE.wire(each.state),
        create_time=codec.timestamp(each.created_at),
        expire_time=codec.timestamp(each.expires_at),
        last_time=codec.timestamp(each.last_at),
    )
