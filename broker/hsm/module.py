"""One PKCS#11 module, initialised so that threads may use it.

python-pkcs11 calls ``C_Initialize(NULL)`` and then releases the GIL, so SoftHSM would run without its locks and crash.
The module is therefore finalised once and initialised again here with ``CKF_OS_LOCKING_OK``; and the few functions that
the binding does not have are called here too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pkcs11
from pkcs11.exceptions import PKCS11Error

from broker.core.errors import Unavailable, WrongState
from broker.core.reasons import Reason
from broker.hsm.codes import error_of, name_of, told
from broker.hsm.functions import Functions, refuse_unloadable

if TYPE_CHECKING:
    from pkcs11._pkcs11 import lib as Library  # noqa: N812 - the binding's class has a lower-case name

_OS_LOCKING_OK = 0x2
_RW_USER_FUNCTIONS = 3
_NO_SESSION = {0xB0, 0xB3, 0x190}  # CKR_SESSION_CLOSED, CKR_SESSION_HANDLE_INVALID, CKR_CRYPTOKI_NOT_INITIALIZED
_TOO_LONG = 0x150
_NOT_ALL = (
    0x11,
    0x12,
    _TOO_LONG,
)  # sensitive, unknown or too long: some were not given, the others were (PKCS#11 5.7.5)
CKM_RSA_AES_KEY_WRAP = 0x1054
_CKA_ID = 0x102
_BATCH = 64
_MAX_FOUND = 1_000_000
_MAX_ATTRIBUTE = 65_536


class _InitializeArguments(ctypes.Structure):
    _fields_ = (
        ("create_mutex", ctypes.c_void_p),
        ("destroy_mutex", ctypes.c_void_p),
        ("lock_mutex", ctypes.c_void_p),
        ("unlock_mutex", ctypes.c_void_p),
        ("flags", ctypes.c_ulong),
        ("reserved", ctypes.c_void_p),
    )


class _SessionInformation(ctypes.Structure):
    _fields_ = (
        ("slot", ctypes.c_ulong),
        ("state", ctypes.c_ulong),
        ("flags", ctypes.c_ulong),
        ("device_error", ctypes.c_ulong),
    )


class _Mechanism(ctypes.Structure):
    _fields_ = (("mechanism", ctypes.c_ulong), ("parameter", ctypes.c_void_p), ("length", ctypes.c_ulong))


class _OaepParameters(ctypes.Structure):
    _fields_ = (
        ("hash", ctypes.c_ulong),
        ("mgf", ctypes.c_ulong),
        ("source", ctypes.c_ulong),
        ("source_data", ctypes.c_void_p),
        ("source_length", ctypes.c_ulong),
    )


class _Attribute(ctypes.Structure):
    _fields_ = (("type", ctypes.c_ulong), ("value", ctypes.c_void_p), ("length", ctypes.c_ulong))


class _RsaAesParameters(ctypes.Structure):
    _fields_ = (("aes_bits", ctypes.c_ulong), ("oaep", ctypes.POINTER(_OaepParameters)))


class Module:
    """A loaded module. ``library`` is python-pkcs11's view of the same one; valid while initialised."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()  # a bare name would be sought by the loader, past every look at the file
        refuse_unloadable(self.path)
        self.library: Library = _started(self.path)
        self._functions = Functions(self.path, self.library)

    def initialize(self) -> None:
        """Initialise with operating-system locks."""
        arguments = _InitializeArguments(flags=_OS_LOCKING_OK)
        if code := self._functions.C_Initialize(ctypes.byref(arguments)):
            raise Unavailable(
                Reason.HSM_UNAVAILABLE,
                f"The PKCS#11 module {self.path} does not initialise for threads ({name_of(code)}).",
            )

    def finalize(self) -> None:
        """Finalise; every session and handle dies. A module that is not initialised is left as it is."""
        self._functions.C_Finalize(None)

    def has_lost(self, session: Any) -> bool:
        """True when the module says that it has no such session; a fault of another kind says nothing of that."""
        return self._asked(session)[0] in _NO_SESSION

    def logged_in(self, session: Any) -> bool:
        """True when it knows this session and the user is logged in."""
        return self._asked(session) == (0, _RW_USER_FUNCTIONS)

    def _asked(self, session: Any) -> tuple[int, int]:
        """The module's answer, and the session's state if that is 0 (CKR_OK)."""
        information = _SessionInformation()
        code = self._functions.C_GetSessionInfo(session.handle, ctypes.byref(information))
        return int(code), int(information.state)

    def read(self, session: Any, handle: int, sizes: Mapping[int, int]) -> dict[int, bytes]:
        """Attributes (type to length in bytes) of the object behind a handle; raises PKCS11Error.

        Here because python-pkcs11 reads the attributes of what the same session has found only, and stumbles over
        objects that others have made. One that the token does not give, or that is longer, is not in the answer.
        """
        buffers = {kind: ctypes.create_string_buffer(size) for kind, size in sizes.items()}
        wanted = (_Attribute * len(sizes))(
            *(_Attribute(kind, ctypes.addressof(buffer), len(buffer)) for kind, buffer in buffers.items())
        )
        code = self._functions.C_GetAttributeValue(session.handle, handle, wanted, len(sizes))
        # A module that says that some are not to be had marks them; one that marks none has read nothing.
        unread = all(one.length <= sizes[one.type] for one in wanted)
        if code and (unread or code not in _NOT_ALL):
            raise error_of(code)
        return {one.type: buffers[one.type].raw[: one.length] for one in wanted if one.length <= sizes[one.type]}

    def find(self, session: Any, template: Mapping[int, bytes]) -> list[int]:
        """The handles of all objects with these attributes; raises PKCS11Error.

        Here because python-pkcs11 looks at each object that it finds, and stumbles over those of other programs.
        """
        functions, kept = (
            self._functions,
            [ctypes.create_string_buffer(value, len(value)) for value in template.values()],
        )
        wanted = (_Attribute * len(template))(
            *(_Attribute(kind, ctypes.addressof(value), len(value)) for kind, value in zip(template, kept, strict=True))
        )
        _check(functions.C_FindObjectsInit(session.handle, wanted, len(template)))
        found: list[int] = []
        batch, count = (ctypes.c_ulong * _BATCH)(), ctypes.c_ulong(1)
        while count.value and len(found) < _MAX_FOUND:
            _check(functions.C_FindObjects(session.handle, batch, _BATCH, ctypes.byref(count)))
            found += batch[: count.value]
        # After any error the session is replaced, and with it the search that is still open in it.
        _check(functions.C_FindObjectsFinal(session.handle))
        return found

    def attributes(self, session: Any, handle: int, kinds: Sequence[int]) -> dict[int, bytes]:
        """These attributes of an object at whatever length, without those that the token does not give."""
        sizes = (_Attribute * len(kinds))(*(_Attribute(kind, None, 0) for kind in kinds))
        code = self._functions.C_GetAttributeValue(session.handle, handle, sizes, len(kinds))
        given = {one.type: one.length for one in sizes if one.length <= _MAX_ATTRIBUTE}
        if code and (len(given) == len(kinds) or code not in _NOT_ALL):  # as in ``read``
            raise error_of(code)
        return self.read(session, handle, given) if given else {}

    def write(self, session: Any, handle: int, kind: int, value: bytes) -> None:
        """Set one attribute of an object; raises PKCS11Error."""
        kept = ctypes.create_string_buffer(value, len(value))
        wanted = _Attribute(kind, ctypes.addressof(kept), len(value))
        _check(self._functions.C_SetAttributeValue(session.handle, handle, ctypes.byref(wanted), 1))

    def destroy(self, session: Any, handle: int) -> None:
        """Destroy an object; raises PKCS11Error."""
        _check(self._functions.C_DestroyObject(session.handle, handle))

    def has_id(self, session: Any, handle: int, hsm_id: bytes) -> bool:
        """True when the object behind the handle has this CKA_ID; raises PKCS11Error. As cheap as it can be."""
        found = ctypes.create_string_buffer(len(hsm_id))
        wanted = _Attribute(_CKA_ID, ctypes.addressof(found), len(hsm_id))
        code = self._functions.C_GetAttributeValue(session.handle, handle, ctypes.byref(wanted), 1)
        if code and code != _TOO_LONG:
            raise error_of(code)
        return not code and wanted.length == len(hsm_id) and found.raw == hsm_id

    def wrap_rsa_aes(self, session: Any, kek: Any, key: Any, oaep_hash: int, mgf: int) -> bytes:
        """One-call CKM_RSA_AES_KEY_WRAP of one object under another, AES-256 ephemeral; raises PKCS11Error.

        Here because python-pkcs11 cannot name this mechanism.
        """
        oaep = _OaepParameters(hash=oaep_hash, mgf=mgf, source=1, source_data=None, source_length=0)
        parameters = _RsaAesParameters(aes_bits=256, oaep=ctypes.pointer(oaep))
        mechanism = _Mechanism(
            mechanism=CKM_RSA_AES_KEY_WRAP,
            parameter=ctypes.cast(ctypes.pointer(parameters), ctypes.c_void_p),
            length=ctypes.sizeof(parameters),
        )
        blob = ctypes.create_string_buffer(8192)
        length = ctypes.c_ulong(len(blob))
        code = self._functions.C_WrapKey(
            session.handle, ctypes.byref(mechanism), kek.handle, key.handle, blob, ctypes.byref(length)
        )
        if code:
            raise error_of(code)
        return blob.raw[: length.value]


def _check(code: int) -> None:
    if code:
        raise error_of(code)


def _started(path: Path) -> Library:
    """python-pkcs11's view of the module, which has begun and ended once: it had no locks."""
    try:
        library = pkcs11.lib(str(path))
        library.finalize()
    except PKCS11Error as fault:
        if told(fault) != "CKR_CRYPTOKI_ALREADY_INITIALIZED":
            raise Unavailable(
                Reason.HSM_UNAVAILABLE, f"The PKCS#11 module {path} does not start ({told(fault)})."
            ) from fault
        raise WrongState(
            Reason.HSM_MODULE_IN_USE, f"The PKCS#11 module {path} is already in use in this process; close that first."
        ) from fault
    return library
