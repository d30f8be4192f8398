"""The life of a key version, after NIST SP 800-57 part 1 (revision 5, section 7): what each phase allows, each move.

    PRE_ACTIVE ─▶ ACTIVE ─▶ DEACTIVATED
         └───────────┴─────────┴─▶ COMPROMISED

SUSPENDED is every version of a key that is disabled, DESTROYED what is gone from the HSM; both are told by the states
of the key and of the version. Each move is on record for good: when, by whom, and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType

from broker.core.errors import WrongState
from broker.core.kinds import KeyState, Phase, VersionState
from broker.core.model import Key, KeyMove, KeyVersion
from broker.core.ports import Write
from broker.core.reasons import Reason


class Use(StrEnum):
    """What can be done with a key version."""

    PROTECT = "sign or encrypt"
    PROCESS = "verify or decrypt"
    IMPORT = "be imported"


ALLOWED: Mapping[Phase, frozenset[Use]] = MappingProxyType(
    {
        Phase.PRE_ACTIVE: frozenset({Use.IMPORT}),
        Phase.ACTIVE: frozenset({Use.PROTECT, Use.PROCESS, Use.IMPORT}),
        Phase.SUSPENDED: frozenset(),
        Phase.DEACTIVATED: frozenset({Use.PROCESS}),
        Phase.COMPROMISED: frozenset({Use.PROCESS}),
        Phase.DESTROYED: frozenset(),
    }
)
"""What each phase allows; all that is done with a version is held against this table and nothing else."""

MOVES: Mapping[Phase, frozenset[Phase]] = MappingProxyType(
    {
        Phase.PRE_ACTIVE: frozenset({Phase.ACTIVE, Phase.DEACTIVATED, Phase.COMPROMISED}),
        Phase.ACTIVE: frozenset({Phase.DEACTIVATED, Phase.COMPROMISED}),
        Phase.DEACTIVATED: frozenset({Phase.COMPROMISED}),
        Phase.COMPROMISED: frozenset(),
    }
)


def phase_of(key: Key, version: KeyVersion) -> Phase:
    """Where the version is in its life."""
    if version.state is VersionState.DESTROYED or key.state is KeyState.DESTROYED:
        return Phase.DESTROYED
    suspended = key.state is not KeyState.ENABLED and version.standing is not Phase.COMPROMISED
    return Phase.SUSPENDED if suspended else version.standing


def require_use(key: Key, version: KeyVersion, use: Use) -> None:
    """Return if the phase of an enabled version allows it; else WrongState ``KEY_VERSION_PHASE``."""
    phase = version.standing
    if use not in ALLOWED[phase]:
        raise WrongState(
            Reason.KEY_VERSION_PHASE,
            f"Version {version.number} of the key {key.name} is {phase}, and such a version cannot {use}; "
            f"`broker key versions {key.name}` shows the phase of each.",
        )


def move(write: Write, version: KeyVersion, phase: Phase, at: datetime, actor: str, reason: str) -> KeyVersion:
    """Bring a version into a phase, and write the move down; to where it is already is no move.

    WrongState ``KEY_VERSION_PHASE`` for a way that there is not.
    """
    now = version.standing
    if phase is now and version.phase is not None:
        return version
    if phase is not now and phase not in MOVES[now]:
        raise WrongState(
            Reason.KEY_VERSION_PHASE,
            f"Version {version.number} of the key {version.key} is {now}, and from there it does not become {phase}.",
        )
    note(write, version, phase, at, actor, reason)
    return write.replace(version, replace(version, phase=phase))


def note(write: Write, version: KeyVersion, phase: Phase, at: datetime, actor: str, reason: str) -> None:
    """Write down that a version came into a phase."""
    former = write.last(KeyMove, version.key, version.number, lock=False)
    number = former.number + 1 if former else 1
    write.add(
        KeyMove(key=version.key, version=version.number, number=number, phase=phase, at=at, actor=actor, reason=reason)
    )
    write.note(phase=phase.value)
