"""The versions of a secret: which can be named, and what each may become."""

from __future__ import annotations

from dataclasses import replace

from broker.core.errors import BrokerError, InvalidRequest, NotFound, WrongState
from broker.core.kinds import SecretVersionState
from broker.core.model import SecretVersion

ENABLED, DELETED, DESTROYED = SecretVersionState.ENABLED, SecretVersionState.DELETED, SecretVersionState.DESTROYED

MAX_VERSIONS = 100
"""Versions that one call changes."""


def check_numbers(numbers: list[int]) -> None:
    """Refuse (``VERSIONS_INVALID``) what cannot be the numbers of versions."""
    if not 1 <= len(numbers) <= MAX_VERSIONS or len(set(numbers)) != len(numbers) or min(numbers) < 1:
        raise InvalidRequest("VERSIONS_INVALID", f"Name 1 to {MAX_VERSIONS} versions, each once, counting from 1.")


def moved(version: SecretVersion | None, to: SecretVersionState) -> SecretVersion:
    """The version in its new state; NotFound, or WrongState once it was destroyed."""
    if version is None:
        raise no_version()
    if version.state is DESTROYED:
        if to is DESTROYED:
            return version
        raise gone(DESTROYED)
    if to is DESTROYED:
        return replace(version, state=DESTROYED, root=0, data_key=b"", sealed=b"")
    return replace(version, state=to)


def no_version() -> BrokerError:
    """The refusal of a version that never was."""
    return NotFound("SECRET_VERSION_NOT_FOUND", "The secret has no such version; `broker secret versions` shows them.")


def no_field() -> BrokerError:
    """The refusal of a field that a version has not."""
    return NotFound("FIELD_NOT_FOUND", "The secret has no such field; `broker secret versions` names them.")


def gone(state: SecretVersionState) -> BrokerError:
    """The refusal of a version that is not handed out any more."""
    if state is DELETED:
        return WrongState("SECRET_DELETED", "This version is deleted; undelete it or put a new one.")
    return WrongState("SECRET_DESTROYED", "This version was destroyed for good; put a new one.")
