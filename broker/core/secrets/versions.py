"""The versions of a secret: which can be named, and what each may become."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from broker.core.amiss import no_secret_version
from broker.core.errors import InvalidRequest, WrongState
from broker.core.kinds import SecretVersionState
from broker.core.model import SecretVersion
from broker.core.reasons import Reason
from broker.core.schedules.standing import LONGEST, SHORTEST

ENABLED, DELETED, DESTROYED = SecretVersionState.ENABLED, SecretVersionState.DELETED, SecretVersionState.DESTROYED

MAX_VERSIONS = 100
"""Versions that one call changes."""


def check_numbers(numbers: list[int]) -> None:
    """Refuse (``VERSIONS_INVALID``) what cannot be the numbers of versions."""
    if not 1 <= len(numbers) <= MAX_VERSIONS or len(set(numbers)) != len(numbers) or min(numbers) < 1:
        raise InvalidRequest(Reason.VERSIONS_INVALID, f"Name 1 to {MAX_VERSIONS} versions, each once, counting from 1.")


def check_max_age(most: timedelta | None) -> None:
    """Refuse (``MAX_AGE_OUT_OF_RANGE``) what no secret can be held to."""
    if most is not None and not SHORTEST <= most <= LONGEST:
        raise InvalidRequest(
            Reason.MAX_AGE_OUT_OF_RANGE,
            f"The age that a secret may reach is from {SHORTEST // timedelta(hours=1)} hour to {LONGEST.days} days.",
        )


def moved(version: SecretVersion | None, to: SecretVersionState, name: str, number: int) -> SecretVersion:
    """The version in its new state; NotFound, or WrongState once it was destroyed."""
    if version is None:
        raise no_secret_version(name, number)
    if version.state is DESTROYED:
        if to is DESTROYED:
            return version
        raise gone(version)
    if to is DESTROYED:
        return replace(version, state=DESTROYED, root=0, data_key=b"", sealed=b"")
    return replace(version, state=to)


def gone(version: SecretVersion) -> WrongState:
    """The refusal of a version that is not handed out any more; a pipeline, which can do nothing, reads it too."""
    name, number = version.secret, version.number
    if version.state is DELETED:
        return WrongState(
            Reason.SECRET_DELETED,
            f"Version {number} of the secret {name} is deleted; the operator who keeps it brings it back (`broker "
            f"secret undelete {name} --version {number}`) or puts a new one.",
        )
    return WrongState(
        Reason.SECRET_DESTROYED,
        f"Version {number} of the secret {name} was destroyed for good; the operator who keeps it puts a new one "
        f"(`broker secret put {name}`).",
    )
