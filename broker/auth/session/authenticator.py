"""The Authenticator port on session tokens (``brs_…``)."""

from __future__ import annotations

from collections.abc import Callable

from broker.core import ports
from broker.core.model import Principal

PREFIX = "brs_"
SCHEME = "bearer "


class SessionTokens:
    """Whoever holds an active session's token. ``authenticate`` is that of ``core.sessions.Sessions``."""

    def __init__(self, authenticate: Callable[[str], Principal]) -> None:
        self._authenticate = authenticate

    def authenticate(self, credentials: ports.Credentials) -> Principal | None:
        """None unless the call carries a session token; Unauthenticated ``SESSION_…`` when that is not a good one."""
        value = credentials.metadata.get("authorization", "")
        token = value[len(SCHEME) :]
        if value[: len(SCHEME)].lower() != SCHEME or not token.startswith(PREFIX):
            return None
        return self._authenticate(token)
