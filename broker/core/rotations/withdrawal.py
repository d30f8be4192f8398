"""What is to be put out of use at a target: whether it still is to be, what of it is there, and if that is ours.

A symmetric key cannot be told from another in its place, so it is tried before it is disabled: by what the HSM encrypts
now or, once its key is destroyed, by what it had encrypted for that when the target could not be asked (the keepsake).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from broker.core import ports
from broker.core.errors import BrokerError, WrongState
from broker.core.imports.proof import UNTRIED, keepsake, opens, opens_keepsake
from broker.core.keys.refs import ref
from broker.core.kinds import ImportState, KeyState, Phase, VersionState
from broker.core.model import Import, Key, KeyVersion, RemoteKey
from broker.core.operations.plan import Work
from broker.core.reasons import Reason
from broker.core.targets.copies import UNPROVEN

DOUBTFUL = frozenset({Reason.PROOF_FAILED.value, UNPROVEN})
"""What the row of a symmetric copy says that may be another key: it is not deleted."""


def is_ending(key: Key) -> bool:
    """Whether the key is destroyed, or is to be, at the targets too."""
    return bool(key.destroyed_at_targets) and key.state in {KeyState.DESTROY_SCHEDULED, KeyState.DESTROYED}


def withdrawn(row: Import, memory: Mapping[str, str]) -> Import:
    """As an attempt to put it out of use has left it; of what was disabled without proof the row says so."""
    if memory.get("doubt") == Reason.PROOF_FAILED:
        return replace(row, state=ImportState.FAILED, failure=Reason.PROOF_FAILED, proven_at=None)
    if "cannot" in memory:
        return replace(row, failure=Reason.TARGET_CANNOT_DISABLE)
    if "disabled" not in memory:
        return row
    if row.state is ImportState.PROVEN or (row.state is ImportState.DISABLED and "doubt" in memory):
        return replace(row, state=ImportState.DISABLED, failure=memory.get("doubt", ""))
    cannot = row.failure == Reason.TARGET_CANNOT_DISABLE
    return replace(row, failure=Reason.REMOTE_KEY_DISABLED) if cannot else row


def in_use_there(port: ports.Target, row: Import, version: KeyVersion) -> list[RemoteKey]:
    """The remote versions that are this copy, and enabled: by its public key or, without one, by the record."""
    return [one for one in port.versions(row.remote_name) if one.enabled and _is_it(row, one, version.public_key)]


def _is_it(row: Import, remote: RemoteKey, public_key: bytes | None) -> bool:
    if remote.public_key is not None and public_key is not None:
        return remote.public_key == public_key
    return bool(row.remote_version) and remote.version == row.remote_version and row.failure != Reason.PROOF_FAILED


def is_unwanted(key: Key, version: KeyVersion) -> bool:
    """Whether it is still to be put out of use: a destruction may have been called off, or be held, since."""
    return _is_over(version) or is_ending(key)


def _is_over(version: KeyVersion) -> bool:
    """Whether it protects nothing any more; what was destroyed before it was in force never did."""
    unused = version.state is VersionState.DESTROYED and version.standing is Phase.PRE_ACTIVE
    return unused or version.standing in {Phase.DEACTIVATED, Phase.COMPROMISED}


def doubt_of(
    hsm: ports.Hsm, work: Work, port: ports.Target, key: Key, version: KeyVersion, remote: RemoteKey
) -> Mapping[str, str]:
    """What speaks against a symmetric key in this place being this one, by its use ("": nothing); {} of any other key.

    One that cannot be tried is not disabled for a destruction, which would then delete it. But a version that is
    compromised is disabled at once if it may be this one at all: whoever it belongs to can enable it again.
    """
    if not key.type.symmetric:
        return {}
    try:
        return {"doubt": "" if _opens(hsm, work, port, key, version, remote) else Reason.PROOF_FAILED.value}
    except BrokerError as error:
        retired = not is_ending(key) and error.reason in UNTRIED
        if version.phase is not Phase.COMPROMISED and not retired:
            raise
        return {"doubt": UNPROVEN}


def provide(hsm: ports.Hsm, work: Work, key: Key, version: KeyVersion) -> None:
    """Have the keepsake remembered: by the time that the target answers, the HSM may have the key no more."""
    if key.type.symmetric and version.state is not VersionState.DESTROYED and _KEEPSAKE not in work.memory:
        work.learn(**{_KEEPSAKE: keepsake(hsm, ref(key, version))})


def _opens(hsm: ports.Hsm, work: Work, port: ports.Target, key: Key, version: KeyVersion, remote: RemoteKey) -> bool:
    if version.state is not VersionState.DESTROYED:
        return opens(hsm, port, ref(key, version), remote)
    if _KEEPSAKE in work.memory:
        return opens_keepsake(port, work.memory[_KEEPSAKE], remote)
    raise WrongState(
        Reason.REMOTE_KEY_SHARED,
        f"Whether version {remote.version} of {remote.name} at the target is the broker's cannot be proven any "
        "more, since the key is destroyed in the HSM, so it is left in use. Disable it there if it is the "
        "broker's; the broker goes on then.",
    )


_KEEPSAKE = "keepsake"
