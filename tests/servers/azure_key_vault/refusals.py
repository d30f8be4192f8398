"""The refusals of the Key Vault REST API: a status and ``{"error": {code, message, innererror: {code}}}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Refused(Exception):
    """One answer that is not a success; ``inner`` is the inner code, "" for none."""

    def __init__(
        self, status: int, code: str, message: str, *, inner: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.inner = status, code, message, inner
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error body of the documented form."""
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.inner:
            error["innererror"] = {"code": self.inner}
        return {"error": error}


def bad_parameter(message: str) -> Refused:
    """The request is understood and wrong."""
    return Refused(400, "BadParameter", message)


def key_not_found(name: str) -> Refused:
    """No key, or no such version of it, has this name; a deleted one counts as absent."""
    return Refused(404, "KeyNotFound", f"A key with (name/id) {name} was not found in this key vault.")


def forbidden(inner: str = "AccessDenied", message: str = "The caller is not authorized to do this.") -> Refused:
    """``inner``: AccessDenied, ForbiddenByRbac, ForbiddenByPolicy, ForbiddenByFirewall, KeyDisabled and more."""
    return Refused(403, "Forbidden", message, inner=inner)


def conflict(inner: str = "", message: str = "There was a conflict with another request.") -> Refused:
    """``inner``: ObjectIsDeletedButRecoverable, ObjectIsBeingDeleted and more; without one, two writers met."""
    return Refused(409, "Conflict" if inner else "ConflictError", message, inner=inner)


def throttled(seconds: int | None = 1) -> Refused:
    """Too many requests; ``seconds`` is what Retry-After says, None leaves it out."""
    headers = {} if seconds is None else {"Retry-After": str(seconds)}
    return Refused(429, "Throttled", "The request was not processed because too many were made.", headers=headers)


def unavailable() -> Refused:
    """The service is out of order for now."""
    return Refused(503, "ServiceUnavailable", "The service is temporarily unavailable.")


def deleted_but_recoverable(name: str) -> Refused:
    """The name belongs to a key that can still be recovered."""
    return conflict(
        "ObjectIsDeletedButRecoverable",
        f"Key {name} is currently in a deleted but recoverable state, and its name cannot be reused.",
    )
