"""The Authenticator port on session tokens (``brs_…``)."""

from __future__ import annotations

from broker.core.identity import Credentials
from broker.core.model import Principal
from broker.core.sessions.lifecycle import Sessions

PREFIX = "brs_"
SCHEME = "bearer "


class SessionTokens:
    """A caller that holds an active session's token; to end a session, one that held it once: ending is repeated."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def authenticate(self, credentials: Credentials) -> Principal | None:
        """None unless the call carries a session token; Unauthenticated ``SESSION_…`` when that is not a good one."""
        value = credentials.metadata.get("authorization", "")
        token = value[len(SCHEME) :]
        if value[: len(SCHEME)].lower() != SCHEME or not token.startswith(PREFIX):
            return None
        return self._sessions.authenticate(token, ended=credentials.traits.ends_session)
