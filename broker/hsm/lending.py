"""Finding keys, and using a cached handle on any session.

A token object's handle is valid in every session of the process, but python-pkcs11 ties an object to the session that
found it. Searching again for each session would cost 15 µs for every object in the token, so the binding's own
operation classes are given the borrowed session and the cached handle instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pkcs11 import Attribute, ObjectClass, _pkcs11
from pkcs11 import KeyType as CkKeyType
from pkcs11 import exceptions as ck
from pkcs11.types import Key

from broker.core.errors import NotFound
from broker.core.reasons import Reason
from broker.hsm import ciphers
from broker.hsm.binding import CK_TYPES, ROLES, ULONG, Binding, ambiguous, conflict, conflicting, not_adopted, not_this
from broker.hsm.sessions import AmbiguousError, TokenSessions, Worker

R = TypeVar("R")
SECRETS: Final = frozenset({ObjectClass.SECRET_KEY, ObjectClass.PRIVATE_KEY})
_HALVES: Final = SECRETS | {ObjectClass.PUBLIC_KEY}
_BINDING: Final[Any] = _pkcs11  # its type stub does not list the operation classes
_MAX_HANDLES: Final = 65_536
_MAX_LABEL: Final = 256


class _LentKey(_BINDING.SignMixin, _BINDING.EncryptMixin, _BINDING.DecryptMixin):  # type: ignore[misc]
    """The binding's operations on plain attributes; the token decides which of them the key may do."""

    session = None  # plain attributes instead of the binding's read-only properties
    handle = None
    key_type = None

    def __init__(self, session: Any, handle: int, key_type: CkKeyType) -> None:
        self.session = session
        self.handle = handle
        self.key_type = key_type


class LentSecret(Key):
    """What a wrapping key of the binding takes as the key to wrap: a handle is all that it looks at."""

    handle = 0  # a plain attribute, as above

    def __init__(self, handle: int) -> None:
        self.handle = handle


def lend(session: Any, handle: int, key_type: CkKeyType) -> Any:
    """The key behind the handle, able to sign, encrypt and decrypt on this session."""
    return _LentKey(session, handle, key_type)


@dataclass(frozen=True, slots=True)
class Half:
    """A key object of the token, as it is there."""

    thing: Any  # python-pkcs11's object
    kind: ObjectClass
    label: bytes


class Finder:
    """Finds keys by CKA_ID, believes only what fits their binding, and remembers handles as long as a login lasts."""

    def __init__(self, sessions: TokenSessions) -> None:
        self._sessions = sessions

    def halves(self, worker: Worker, hsm_id: bytes) -> list[Half]:
        """Every key object under this id, our own and others'. Hold the objects lock."""
        found = []
        for thing in self._sessions.search(worker, {Attribute.ID: hsm_id}):
            kind, label = self.read_kind(worker, thing)
            if kind in _HALVES:
                found.append(Half(thing, ObjectClass(kind), label))
        return found

    def read_kind(self, worker: Worker, thing: Any) -> tuple[int, bytes]:
        """Class and label of an object, as the token gives them; no label: b"" (nor one that is none of ours)."""
        read = self._sessions.module.read(
            worker.session, thing.handle, {Attribute.CLASS: ULONG, Attribute.LABEL: _MAX_LABEL}
        )
        return int.from_bytes(read.get(Attribute.CLASS, b""), sys.byteorder), read.get(Attribute.LABEL, b"")

    def read_name(self, worker: Worker, thing: Any) -> tuple[bytes, bytes]:
        """Id and label of an object, as the token gives them; b"" for one that it does not."""
        sizes: dict[int, int] = {Attribute.ID: _MAX_LABEL, Attribute.LABEL: _MAX_LABEL}
        read = self._sessions.module.read(worker.session, thing.handle, sizes)
        return read.get(Attribute.ID, b""), read.get(Attribute.LABEL, b"")

    def secret_half(self, worker: Worker, binding: Binding) -> Any:
        """The object that is the secret half of this key. Hold the objects lock.

        NotFound ``KEY_NOT_IN_HSM``, WrongState ``KEY_NOT_THIS``, ``KEY_AMBIGUOUS``; ``HSM_KEY_CONFLICT`` when it may do
        more than the broker ever lets a key do (HS-01).
        """
        thing = self._only(worker, binding, SECRETS)
        self.refuse_misfit(worker, binding, thing)
        if conflict(self._sessions.module.read(worker.session, thing.handle, ROLES)):
            raise conflicting(binding.label)
        return thing

    def public_half(self, worker: Worker, binding: Binding) -> Any:
        """The object with the public half, whatever its type. Hold the objects lock."""
        return self._only(worker, binding, frozenset({ObjectClass.PUBLIC_KEY}))

    def refuse_misfit(self, worker: Worker, binding: Binding, thing: Any) -> None:
        """``KEY_NOT_THIS`` unless this secret half is of the key's type, usage and check value."""
        if not binding.fits(self._sessions.module.read(worker.session, thing.handle, binding.sizes())):
            raise not_this(binding.label, "the object under its id is of another type, size or usage")
        if binding.check is not None and not self._proves(worker, binding, thing.handle, binding.check):
            raise not_this(binding.label, "the object under its id is another key than the one that was made")

    def use(self, worker: Worker, binding: Binding, operation: Callable[[Any], R], *, asked: bool) -> R:
        """Call ``operation`` with the secret half on this session.

        ``asked``: the token is asked whether a remembered handle still is this key's, because nothing else would show
        it. A handle that died is forgotten, and the error is a loss as any: the next try is made on a fresh session,
        since this one may have an operation half begun.
        """
        handle = worker.handles.get(binding)
        try:
            if handle is None or (asked and not self._is_still(worker, binding, handle)):
                with self._sessions.objects:
                    handle = self._searched(worker, binding)
            return operation(lend(worker.session, handle, CK_TYPES[binding.type]))
        except (ck.ObjectHandleInvalid, ck.KeyHandleInvalid):
            worker.handles.pop(binding, None)
            raise

    def secret(self, worker: Worker, binding: Binding, flags: Iterable[Attribute]) -> tuple[int, dict[int, bytes]]:
        """The handle of the secret half, and these one-byte attributes as they are now. Hold the objects lock.

        A remembered handle is believed only if the token still gives id, label and class for what is behind it.
        """
        handle, wanted = worker.handles.get(binding), tuple(map(int, flags))
        if handle is not None:
            try:
                return handle, self._read(worker, binding, handle, wanted)
            except (ck.ObjectHandleInvalid, ck.KeyHandleInvalid, _NotItError):
                worker.handles.pop(binding, None)
        handle = self._searched(worker, binding)
        return handle, self._read(worker, binding, handle, wanted)

    def remember(self, worker: Worker, binding: Binding, handle: int) -> None:
        """Keep the handle of a secret half that was found or made."""
        if len(worker.handles) >= _MAX_HANDLES:
            worker.handles.clear()
        worker.handles[binding] = handle

    def _only(self, worker: Worker, binding: Binding, kinds: frozenset[ObjectClass]) -> Any:
        there = self.halves(worker, binding.hsm_id)
        halves = [half for half in there if half.kind in kinds]
        if not halves and any(half.kind is ObjectClass.SECRET_KEY for half in there):  # it has no public half
            raise not_this(binding.label, "the object under its id is of another type, size or usage")
        if not halves:
            self._sessions.confirm()
            raise NotFound(
                Reason.KEY_NOT_IN_HSM,
                "The HSM does not hold this key: it was destroyed there, or this is not the token that it was made "
                "in; `broker doctor --config FILE` on the broker's host tells which.",
            )
        own = [half for half in halves if half.label == binding.label]
        if len(own) != len(halves):
            raise strange(binding, halves)
        if len(own) > 1:
            raise AmbiguousError(binding.label)
        self._sessions.strays.discard(binding.label)
        return own[0].thing

    def _proves(self, worker: Worker, binding: Binding, handle: int, check: bytes) -> bool:
        try:
            return ciphers.proves(lend(worker.session, handle, CK_TYPES[binding.type]), check, binding.label)
        except ciphers.REFUSED:
            return False
        except ciphers.AMBIGUOUS:
            self._sessions.confirm()
            return False

    def _searched(self, worker: Worker, binding: Binding) -> int:
        handle: int = self.secret_half(worker, binding).handle
        self.remember(worker, binding, handle)
        return handle

    def _is_still(self, worker: Worker, binding: Binding, handle: int) -> bool:
        """By the id alone, which no other object had when the handle was found, with label and all that it must have.

        Each further attribute would cost SoftHSM another decryption, and this is asked at each use.
        """
        if self._sessions.module.has_id(worker.session, handle, binding.hsm_id):
            return True
        worker.handles.pop(binding, None)
        return False

    def _read(self, worker: Worker, binding: Binding, handle: int, flags: Iterable[int]) -> dict[int, bytes]:
        identity = binding.identity()
        sizes = {kind: len(value) for kind, value in identity.items()} | dict.fromkeys(flags, 1)
        read = self._sessions.module.read(worker.session, handle, sizes)
        if any(read.pop(kind, b"") != value for kind, value in identity.items()):
            raise _NotItError
        return read


class _NotItError(ck.PKCS11Error):
    """The handle is another object's."""


def strange(binding: Binding, halves: Sequence[Half]) -> Exception:
    """The refusal of objects under a key's id that are not that key's, or not all of them."""
    if any(half.label == binding.label for half in halves):
        return ambiguous(binding.label)
    if any(half.label == binding.hsm_id.hex().encode() for half in halves):
        return not_adopted(binding.label)
    return not_this(binding.label, "the object under its id was made as another key")
