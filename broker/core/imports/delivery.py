"""One key version on its way to one target: wrapped in the HSM, uploaded, found there again.

What is in the store is not this module's concern: ``imports`` says when something may be sent, and writes down how it
went. An upload can succeed without its answer arriving, so after every upload that seems to fail the target is asked
what it holds (BY-15).
"""

from __future__ import annotations

from dataclasses import dataclass

from broker.core.errors import BrokerError, Unavailable, WrongState
from broker.core.imports.arrival import Arrival, Found
from broker.core.imports.proof import UNTRIED, prove
from broker.core.kinds import OaepHash
from broker.core.model import RemoteKey, WrappingKey
from broker.core.ports import Cargo, KeyRef, Offer
from broker.core.reasons import Reason
from broker.core.targets.keks import made_for

NOT_SENT = frozenset({
    Reason.TARGET_CHALLENGE_REFUSED, Reason.TARGET_CREDENTIAL_UNUSABLE, Reason.TARGET_DENIED, Reason.TARGET_FIREWALL,
    Reason.TARGET_TLS_UNTRUSTED,
})  # fmt: skip
"""Refusals of an upload with which nothing can have arrived."""

NAME_REFUSED = frozenset({Reason.TARGET_NAME_DELETED, Reason.TARGET_NAME_TAKEN})
"""Refusals of an upload for its name, which something else has there: ours was looked for, and nothing made of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sibling:
    """Another version of the key, proven under the same remote name."""

    key: KeyRef
    remote_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """A fresh blob (none is ever used twice, BY-14), and the offer that it was wrapped for."""

    cargo: Cargo
    offer: Offer
    blob: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """All that is decided before anything leaves; ``kek`` is the pinned one, None where each import has its own."""

    there: Arrival
    kek: WrappingKey | None
    oaep_hash: OaepHash
    newest: Sibling | None
    newer: frozenset[str] = frozenset()  # remote versions of later versions of the key that were proven under this name

    @property
    def remote_name(self) -> str:
        """The key's name at the target."""
        return self.there.remote_name

    def ours(self) -> tuple[RemoteKey, ...]:
        """What the target has under the name, once that is known to be ours; () when a new remote key is to be made.

        WrongState ``TARGET_NAME_TAKEN`` when what stands under the name is not ours (BY-10).
        """
        port = self.there.port
        held = port.versions(self.remote_name) if self.newest else []
        if not held or self.newest is None:
            return ()
        before = next((one for one in held if one.version == self.newest.remote_version), None)
        if before is None:
            raise self._name_taken()
        try:
            prove(self.there.hsm, port, self.newest.key, before)
        except WrongState as error:
            if error.reason == Reason.PROOF_FAILED:
                raise self._name_taken() from error
            # A version that was put out of use on purpose, as older ones are, is known by its public key.
            if error.reason not in UNTRIED or before.public_key is None:
                raise
        return tuple(held)

    def must_be_in_order(self, *, asking: bool = True) -> None:
        """Refuse (``NEWER_VERSION_THERE``) what would put an older version before the one in use there (BY-13).

        Without ``asking`` the broker's own record decides, because nothing is to connect to the target.
        """
        if not self.newer:
            return
        if asking and not self.newer & {one.version for one in self.there.port.versions(self.remote_name)}:
            return
        raise WrongState(
            Reason.NEWER_VERSION_THERE,
            f"A later version of the key {'is' if asking else 'was proven'} at the target as {self.remote_name}; an "
            "older one would become the current one there, so it is not uploaded any more.",
        )

    def must_be_free(self) -> None:
        """Return if the remote name is ours to use, as far as the target shows it now; else ``TARGET_NAME_TAKEN``."""
        if self.there.find() is not None:
            return
        self.must_be_in_order()
        if not self.ours() and self.there.port.versions(self.remote_name):
            raise self._name_taken()

    def pack(self) -> Parcel:
        """What is to be sent, wrapped for the pinned KEK or for one that the target makes now, for this alone."""
        port, key = self.there.port, self.there.key
        held = self.ours()
        cargo = Cargo(name=self.remote_name, type=key.type, usage=key.usage, first=not held, held=held)
        offer = Offer(key=self.kek) if self.kek else made_for(port, cargo)
        return Parcel(cargo=cargo, offer=offer, blob=self.wrap(offer.key))

    def wrap(self, kek: WrappingKey) -> bytes:
        """A fresh blob."""
        there = self.there
        return there.hsm.wrap(there.key, kek, self.oaep_hash, exact=there.port.exact_wrap)

    def must_be_readable(self) -> None:
        """Refuse (``WRAP_NOT_EXACT``) what the target could not read, by a wrap that goes nowhere.

        Without a KEK there is nothing to try it with, and making one would change something there.
        """
        if self.kek and self.there.port.exact_wrap and not self.there.hsm.report().exact_wrap:
            self.wrap(self.kek)

    def upload(self, parcel: Parcel) -> Found | None:
        """Send it. What is there as this version although that seemed to fail; None when the target has confirmed it.

        An error means that it is not there, or, if it is ``Unavailable``, that nobody can tell yet.
        """
        try:
            self.there.port.import_key(parcel.cargo, parcel.blob, self.oaep_hash, parcel.offer.token)
        except BrokerError as error:
            return self._despite(error)
        return None

    def confirmed(self) -> Found:
        """What the target holds as this version after an upload that it confirmed; still to be proven."""
        try:
            found = self.there.uploaded()
        except WrongState as error:
            raise _unsettled(error) from error
        if found is None:
            raise WrongState(
                Reason.REMOTE_KEY_MISSING,
                "The target took the key and then did not have it; ask its owner who removes keys there, then import "
                "it again.",
            )
        return found

    def _despite(self, error: BrokerError) -> Found:
        """Our version, if it is there although the upload seemed to fail; else that error."""
        if error.reason in NOT_SENT:
            raise error
        try:
            found = self.there.find()
        except BrokerError:
            raise (error if isinstance(error, Unavailable) else _unsettled(error)) from error
        if found is None:
            raise error
        return found

    def _name_taken(self) -> WrongState:
        return WrongState(
            Reason.TARGET_NAME_TAKEN,
            f"The target has a key named {self.remote_name} that is not this one; choose another remote name.",
        )


def _unsettled(error: BrokerError) -> Unavailable:
    return Unavailable(Reason.IMPORT_UNSETTLED, f"Whether the key is at the target now cannot be told. {error.message}")
