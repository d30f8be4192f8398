"""One key version as a target has it: found there, proven by use, and the only one of its kind.

What a service does with a repeated or lost request is not up to us, so the same key may be there twice. Every reading
back looks for that: one version is proven, and the others are put out of use (BY-06, BY-15).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from broker.core.errors import WrongState
from broker.core.imports.proof import opens, prove
from broker.core.model import RemoteKey
from broker.core.ports import Hsm, KeyRef, Target

MAX_TRIED = 32
"""Remote versions of a symmetric key that are tried out, newest first, to find ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The remote version that is to be proven, and those that may hold the same key besides."""

    remote: RemoteKey
    others: tuple[RemoteKey, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """A further remote version that holds the same key, and whether it could be put out of use."""

    version: str
    disabled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """Looks for ``key`` under ``remote_name``."""

    hsm: Hsm
    port: Target
    key: KeyRef
    remote_name: str
    taken: frozenset[str]  # remote versions that are other versions of this key
    known: str  # the remote version an earlier attempt had and did not find to be another key; else ""

    def find(self) -> Found | None:
        """The remote version that is this very key, by its public key or, if it has none, by trying it."""
        held = self.port.versions(self.remote_name)
        if self.key.public_key is not None:
            return self._same(held)
        tried = self._unknown(held)
        for at, one in enumerate(tried):
            if one.version == self.known or self._is_ours(one):  # whether it is will be proven
                return Found(remote=one, others=_enabled(tried[at + 1 :]))
        return None

    def uploaded(self) -> Found | None:
        """What the target holds after an upload that it confirmed, ours or not: the proof will tell. None: nothing."""
        held = self.port.versions(self.remote_name)
        if not held:
            return None
        if self.key.public_key is not None:
            return self._same(held) or Found(remote=held[-1])
        return Found(remote=held[-1], others=_enabled(self._unknown(held[:-1])))

    def named(self, version: str) -> Found | None:
        """This very version, ours or not."""
        held = self.port.versions(self.remote_name)
        return next((Found(remote=one) for one in held if one.version == version), None)

    def left(self) -> Found | None:
        """What an upload has left there that the target once confirmed: ours, or the one version that can be it.

        A version that somebody else has made meanwhile is not to be taken for it.
        """
        return self.find() or self._the_only_one(self._enabled_unknown())

    def is_doubtful(self) -> bool:
        """Whether there are several versions of which nobody can tell which one was uploaded."""
        return len(self._enabled_unknown()) > 1

    def prove(self, remote: RemoteKey, *, enable: bool) -> None:
        """Prove ``remote`` by use. ``enable``: an earlier attempt disabled it, so it is enabled first."""
        if enable and not remote.enabled:
            self.port.enable(remote.name, remote.version)
            remote = self._shown(remote)
        prove(self.hsm, self.port, self.key, remote)

    def tidy(self, found: Found) -> tuple[Extra, ...]:
        """The further versions that hold the same key, each disabled where the target can do that."""
        doubles = [one for one in found.others if self.key.public_key is not None or self._is_ours(one)]
        return tuple(Extra(version=one.version, disabled=self._disabled(one)) for one in doubles)

    def _same(self, held: list[RemoteKey]) -> Found | None:
        same = [one for one in held if one.public_key == self.key.public_key]
        if not same:
            # A disabled version may not show its public key; if it is one of ours, it is looked at once it is enabled.
            hidden = (one for one in held if one.version == self.known and one.public_key is None and not one.enabled)
            return next((Found(remote=one) for one in hidden), None)
        usable = [one for one in same if one.enabled] or same
        chosen = next((one for one in usable if one.version == self.known), usable[0])
        return Found(remote=chosen, others=_enabled(one for one in same if one is not chosen))

    def _shown(self, remote: RemoteKey) -> RemoteKey:
        """A version that was just enabled, with the public key that it may not have shown before."""
        if remote.public_key is not None or self.key.public_key is None:
            return replace(remote, enabled=True)
        held = self.port.versions(self.remote_name)
        return next((one for one in held if one.version == remote.version), remote)

    def _enabled_unknown(self) -> list[RemoteKey]:
        return [one for one in self._unknown(self.port.versions(self.remote_name)) if one.enabled]

    def _the_only_one(self, remotes: list[RemoteKey]) -> Found | None:
        return Found(remote=remotes[0]) if len(remotes) == 1 else None

    def _unknown(self, held: list[RemoteKey]) -> list[RemoteKey]:
        return [one for one in reversed(held) if one.version not in self.taken][:MAX_TRIED]

    def _is_ours(self, remote: RemoteKey) -> bool:
        # What is disabled cannot be tried, and somebody else's is not to be enabled for that.
        return remote.enabled and opens(self.hsm, self.port, self.key, remote)

    def _disabled(self, remote: RemoteKey) -> bool:
        try:
            self.port.disable(remote.name, remote.version)
        except WrongState:  # told to the caller, for whom the import itself is proven all the same
            return False
        return True


def _enabled(held: Iterable[RemoteKey]) -> tuple[RemoteKey, ...]:
    return tuple(one for one in held if one.enabled)
