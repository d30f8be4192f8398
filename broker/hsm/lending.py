"""Using a cached handle on any session.

A token object's handle is valid in every session of the process, but python-pkcs11 ties an object to the session that
found it. Searching again for each session would cost 15 µs for every object in the token, so the binding's own
operation classes are given the borrowed session and the cached handle instead.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from pkcs11 import Attribute, ObjectClass, _pkcs11
from pkcs11 import KeyType as CkKeyType
from pkcs11 import exceptions as ck
from pkcs11.types import Key

from broker.core.errors import NotFound
from broker.core.kinds import KeyType
from broker.core.ports import KeyRef
from broker.hsm.objects import secret_class
from broker.hsm.sanity import RSA_BITS
from broker.hsm.sessions import AmbiguousError, Sessions, Worker

R = TypeVar("R")
_BINDING: Final[Any] = _pkcs11  # its type stub does not list the operation classes
_BINDING_TYPES: Final = {
    **dict.fromkeys(KeyType, CkKeyType.EC),
    **dict.fromkeys(RSA_BITS, CkKeyType.RSA),
    KeyType.ED25519: CkKeyType.EC_EDWARDS,
    KeyType.AES_128: CkKeyType.AES,
    KeyType.AES_256: CkKeyType.AES,
}
_MAX_HANDLES: Final = 65_536
_ULONG: Final = ctypes.sizeof(ctypes.c_ulong)


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


class Finder:
    """Finds keys by CKA_ID, and remembers their handles for as long as a login lasts."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def only(self, worker: Worker, hsm_id: bytes, kind: ObjectClass) -> Any:
        """The one object of this class and id; NotFound ``KEY_NOT_IN_HSM``. Hold the objects lock."""
        found = self._sessions.search(worker, {Attribute.ID: hsm_id, Attribute.CLASS: kind})
        if not found:
            self._sessions.confirm()
            raise NotFound("KEY_NOT_IN_HSM", "The HSM does not hold this key: it was destroyed, or the token is new.")
        if len(found) > 1:
            raise AmbiguousError
        return found[0]

    def use(self, worker: Worker, key: KeyRef, operation: Callable[[Any], R]) -> R:
        """Call ``operation`` with the secret half on this session.

        A handle that died is forgotten, and the error is a loss as any: the next try is made on a fresh session, since
        this one may have an operation half begun.
        """
        cached = worker.handles.get(key.hsm_id)
        if cached is not None:
            try:
                return operation(lend(worker.session, cached, _BINDING_TYPES[key.type]))
            except (ck.ObjectHandleInvalid, ck.KeyHandleInvalid):
                worker.handles.pop(key.hsm_id, None)
                raise
        with self._sessions.objects:
            handle = self._searched(worker, key)
        return operation(lend(worker.session, handle, _BINDING_TYPES[key.type]))

    def secret(self, worker: Worker, key: KeyRef, flags: Iterable[Attribute]) -> tuple[int, dict[int, bytes]]:
        """The handle of the secret half, and these one-byte attributes as they are now. Hold the objects lock.

        A remembered handle is believed only if the token still gives this id and class for what is behind it.
        """
        cached = worker.handles.get(key.hsm_id)
        if cached is not None:
            try:
                return cached, self._read(worker, key, cached, flags)
            except (ck.ObjectHandleInvalid, ck.KeyHandleInvalid, AmbiguousError):
                worker.handles.pop(key.hsm_id, None)
        handle = self._searched(worker, key)
        return handle, self._read(worker, key, handle, flags)

    def remember(self, worker: Worker, hsm_id: bytes, handle: int) -> None:
        """Keep the handle of a secret half that was found or made."""
        if len(worker.handles) >= _MAX_HANDLES:
            worker.handles.clear()
        worker.handles[hsm_id] = handle

    def _searched(self, worker: Worker, key: KeyRef) -> int:
        handle: int = self.only(worker, key.hsm_id, secret_class(key.type)).handle
        self.remember(worker, key.hsm_id, handle)
        return handle

    def _read(self, worker: Worker, key: KeyRef, handle: int, flags: Iterable[Attribute]) -> dict[int, bytes]:
        sizes = {**dict.fromkeys(map(int, flags), 1), Attribute.ID: len(key.hsm_id), Attribute.CLASS: _ULONG}
        read = self._sessions.module.read(worker.session, handle, sizes)
        if read.pop(Attribute.ID, b"") != key.hsm_id or int.from_bytes(
            read.pop(Attribute.CLASS, b""), sys.byteorder
        ) != secret_class(key.type):
            raise AmbiguousError
        return read
