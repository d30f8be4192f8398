"""What is to be put out of use at a target: whether it still is to be, what of it is there, and if that is ours.

A symmetric key cannot be told from another in its place, so it is tried before it is disabled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from broker.core import ports
from broker.core.errors import BrokerError, WrongState
from broker.core.imports.proof import UNTRIED, opens
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


def is_anothers(
    hsm: ports.Hsm, work: Work, port: ports.Target, key: Key, version: KeyVersion, remote: RemoteKey
) -> bool:
    """Whether a symmetric key in this place is another one, by its use; what speaks against it is remembered.

    One that cannot be tried is not disabled for a destruction, which would then delete it. But a version that is
    compromised is disabled at once if it may be this one at all: whoever it belongs to can enable it again.
    """
    if not key.type.symmetric:
        return False
    try:
        doubt = "" if _opens(hsm, port, key, version, remote) else Reason.PROOF_FAILED.value
    except BrokerError as error:
        retired = not is_ending(key) and error.reason in UNTRIED
        if version.phase is not Phase.COMPROMISED and not retired:
            raise
        doubt = UNPROVEN
    work.learn(doubt=doubt)
    return doubt == Reason.PROOF_FAILED


def _opens(hsm: ports.Hsm, port: ports.Target, key: Key, version: KeyVersion, remote: RemoteKey) -> bool:
    if version.state is VersionState.DESTROYED:
        raise WrongState(
            Reason.REMOTE_KEY_SHARED,
            f"Whether version {remote.version} of {remote.name} at the target is the broker's cannot be proven any "
            "more, since the key is destroyed in the HSM, so it is left in use. Disable it there if it is the "
            "broker's; the broker goes on then.",
        )
    return opens(hsm, port, ref(key, version), remote)
