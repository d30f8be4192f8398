"""One key version on its way to one target: wrapped in the HSM, uploaded, found there again.

What is in the store is not this module's concern: ``imports`` says when something may be sent, and writes down how it
went. An upload can succeed without its answer arriving, so after every upload that seems to fail the target is asked
what it holds (BY-15).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from broker.core.errors import BrokerError, Unavailable, WrongState
from broker.core.kinds import OaepHash
from broker.core.model import RemoteKey, WrappingKey
from broker.core.ports import Hsm, KeyRef, Target
from broker.core.proof import opens, prove

MAX_TRIED = 32
"""Remote versions of a symmetric key that are tried out, newest first, to find ours."""

NOT_SENT = frozenset({"TARGET_CREDENTIAL_UNUSABLE", "TARGET_DENIED", "TARGET_TLS_UNTRUSTED"})
"""Refusals of an upload with which nothing can have arrived."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sibling:
    """Another version of the key, proven under the same remote name."""

    key: KeyRef
    remote_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """All that is settled before anything leaves; ``kek`` is the pinned one."""

    hsm: Hsm
    port: Target
    key: KeyRef
    remote_name: str
    kek: WrappingKey
    oaep_hash: OaepHash
    newest: Sibling | None
    taken: frozenset[str]  # remote versions that are other versions of this key
    known: str  # the remote version an earlier attempt had, "" if it came to none

    def find(self) -> RemoteKey | None:
        """The remote version that is this very key, by its public key or, if it has none, by trying it."""
        held = self.port.versions(self.remote_name)
        if self.key.public_key is not None:
            same = [one for one in held if one.public_key == self.key.public_key]
            return next((one for one in same if one.enabled), same[0] if same else None)
        unknown = [one for one in reversed(held) if one.version not in self.taken]
        return next((one for one in unknown[:MAX_TRIED] if self._is_ours(one)), None)

    def is_first(self) -> bool:
        """True when a new remote key is to be made; False when a further version of ours is.

        WrongState ``TARGET_NAME_TAKEN`` when what stands under the name is not ours (BY-10).
        """
        held = self.port.versions(self.remote_name) if self.newest else []
        if not held or self.newest is None:
            return True
        before = next((one for one in held if one.version == self.newest.remote_version), None)
        if before is None:
            raise self.name_taken()
        try:
            prove(self.hsm, self.port, self.newest.key, before)
        except WrongState as error:
            raise self.name_taken() if error.reason == "PROOF_FAILED" else error from error
        return False

    def wrap(self) -> bytes:
        """A fresh blob; none is ever used twice (BY-14)."""
        return self.hsm.wrap(self.key, self.kek, self.oaep_hash, exact=self.port.exact_wrap)

    def upload(self, blob: bytes, *, first: bool) -> RemoteKey:
        """What the target holds afterwards as this version; still to be proven.

        An error means that it is not there, or, if it is ``Unavailable``, that nobody can tell yet.
        """
        try:
            self.port.import_key(self.remote_name, self.key.type, self.key.usage, blob, self.oaep_hash, first=first)
        except BrokerError as error:
            return self._despite(error)
        try:
            held = self.port.versions(self.remote_name)
        except WrongState as error:
            raise _unsettled(error) from error
        if not held:
            raise WrongState(
                "REMOTE_KEY_MISSING", "The target took the key and then did not have it; ask its owner, and try again."
            )
        public_key = self.key.public_key
        return next((one for one in held if public_key and one.public_key == public_key), held[-1])

    def prove(self, remote: RemoteKey, *, again: bool) -> None:
        """Prove ``remote`` by use. ``again``: an earlier attempt disabled it, so it is enabled first."""
        if again and not remote.enabled:
            self.port.enable(remote.name, remote.version)
            remote = replace(remote, enabled=True)
        prove(self.hsm, self.port, self.key, remote)

    def name_taken(self) -> WrongState:
        """The remote name belongs to somebody else."""
        return WrongState(
            "TARGET_NAME_TAKEN",
            f"The target has a key named {self.remote_name} that is not this one; choose another remote name.",
        )

    def _is_ours(self, remote: RemoteKey) -> bool:
        if not remote.enabled:  # it cannot be tried, and somebody else's is not to be enabled for that
            return remote.version == self.known
        return opens(self.hsm, self.port, self.key, remote)

    def _despite(self, error: BrokerError) -> RemoteKey:
        """Our version, if it is there although the upload seemed to fail; else that error."""
        if error.reason in NOT_SENT:
            raise error
        try:
            there = self.find()
        except BrokerError:
            raise (error if isinstance(error, Unavailable) else _unsettled(error)) from error
        if there is None:
            raise error
        return there


def _unsettled(error: BrokerError) -> Unavailable:
    return Unavailable("IMPORT_UNSETTLED", f"Whether the key is at the target now cannot be told. {error.message}")
