"""One PKCS#11 module, initialised so that threads may use it.

python-pkcs11 calls ``C_Initialize(NULL)`` and then releases the GIL, so SoftHSM would run without its locks and crash.
The module is therefore finalised once and initialised again here with ``CKF_OS_LOCKING_OK``; and the few functions that
the binding does not have are called here too.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pkcs11
from pkcs11 import exceptions as ck
from pkcs11.exceptions import PKCS11Error

from broker.core.errors import Unavailable, WrongState

if TYPE_CHECKING:
    from pkcs11._pkcs11 import lib as Library  # noqa: N812 - the binding's class has a lower-case name

_OS_LOCKING_OK = 0x2
_RW_USER_FUNCTIONS = 3
_NO_SESSION = {0xB0, 0xB3, 0x190}  # CKR_SESSION_CLOSED, CKR_SESSION_HANDLE_INVALID, CKR_CRYPTOKI_NOT_INITIALIZED
_ERRORS: Mapping[int, type[PKCS11Error]] = {
    0x03: ck.SlotIDInvalid,
    0x05: ck.GeneralError,
    0x30: ck.DeviceError,
    0x31: ck.DeviceMemory,
    0x32: ck.DeviceRemoved,
    0x60: ck.KeyHandleInvalid,
    0x6A: ck.KeyUnextractable,
    0x82: ck.ObjectHandleInvalid,
    0xB0: ck.SessionClosed,
    0xB3: ck.SessionHandleInvalid,
    0xE0: ck.TokenNotPresent,
    0xE1: ck.TokenNotRecognised,
    0x101: ck.UserNotLoggedIn,
}
"""The codes that are told apart; the binding has such a table but does not show it."""

_TOO_LONG = 0x150
_NOT_ALL = (
    0x11,
    0x12,
    _TOO_LONG,
)  # sensitive, unknown or too long: some were not given, the others were (PKCS#11 5.7.5)
CKM_RSA_AES_KEY_WRAP = 0x1054
_CKA_ID = 0x102
_NEEDED = ("C_Initialize", "C_Finalize", "C_GetAttributeValue", "C_GetSessionInfo", "C_WrapKey")


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
        _refuse_loose_file(path)
        self.path = path
        self.library: Library = _load(path)
        self._functions = ctypes.CDLL(str(path))
        if missing := [name for name in _NEEDED if not hasattr(self._functions, name)]:
            raise _not_pkcs11(path) from AttributeError(", ".join(missing))
        self._functions.C_GetSessionInfo.argtypes = (ctypes.c_ulong, ctypes.c_void_p)
        self._functions.C_GetAttributeValue.argtypes = (*[ctypes.c_ulong] * 2, ctypes.c_void_p, ctypes.c_ulong)
        self.library.finalize()

    def initialize(self) -> None:
        """Initialise with operating-system locks."""
        arguments = _InitializeArguments(flags=_OS_LOCKING_OK)
        if code := self._functions.C_Initialize(ctypes.byref(arguments)):
            raise Unavailable(
                "HSM_UNAVAILABLE", f"The PKCS#11 module {self.path} does not initialise for threads (CKR 0x{code:x})."
            )

    def finalize(self) -> None:
        """Finalise; every session and handle dies. A module that is not initialised is left as it is."""
        self._functions.C_Finalize(None)

    def knows(self, session: Any) -> bool:
        """True when the module is initialised and the session is open in it."""
        return self._asked(session)[0] == 0

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
        # Whoever says that some are not to be had marks them; who marks none has read nothing.
        unread = all(one.length <= sizes[one.type] for one in wanted)
        if code and (unread or code not in _NOT_ALL):
            raise _failed("C_GetAttributeValue", code)
        return {one.type: buffers[one.type].raw[: one.length] for one in wanted if one.length <= sizes[one.type]}

    def has_id(self, session: Any, handle: int, hsm_id: bytes) -> bool:
        """True when the object behind the handle has this CKA_ID; raises PKCS11Error. As cheap as it can be."""
        found = ctypes.create_string_buffer(len(hsm_id))
        wanted = _Attribute(_CKA_ID, ctypes.addressof(found), len(hsm_id))
        code = self._functions.C_GetAttributeValue(session.handle, handle, ctypes.byref(wanted), 1)
        if code and code != _TOO_LONG:
            raise _failed("C_GetAttributeValue", code)
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
            ctypes.c_ulong(session.handle),
            ctypes.byref(mechanism),
            ctypes.c_ulong(kek.handle),
            ctypes.c_ulong(key.handle),
            blob,
            ctypes.byref(length),
        )
        if code:
            raise _failed("C_WrapKey with CKM_RSA_AES_KEY_WRAP", code)
        return blob.raw[: length.value]


def _failed(what: str, code: int) -> PKCS11Error:
    return _ERRORS.get(code, PKCS11Error)(f"{what} gave CKR 0x{code:x}")


def _refuse_loose_file(path: Path) -> None:
    """The module's code runs with the PIN in reach, so nobody else may be able to change it (SC-04)."""
    try:
        status = path.stat()
    except OSError as fault:
        raise WrongState(
            "HSM_MODULE_MISSING",
            f"There is no PKCS#11 module at {path} ({fault.strerror}); install it or correct the path.",
        ) from fault
    if not stat.S_ISREG(status.st_mode):
        raise WrongState("HSM_MODULE_MISSING", f"The PKCS#11 module {path} is not a file; name the .so itself.")
    if status.st_uid not in {0, os.geteuid()} or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise WrongState(
            "HSM_MODULE_UNSAFE",
            f"The PKCS#11 module {path} can be changed by another user; let root own it, with mode 0644.",
        )


def _load(path: Path) -> Library:
    try:
        return pkcs11.lib(str(path))
    except PKCS11Error as fault:
        if "already initialized" in str(fault):
            raise WrongState(
                "HSM_MODULE_IN_USE", f"The PKCS#11 module {path} is already in use in this process; close that first."
            ) from fault
        if "OS exception" in str(fault):
            raise _not_pkcs11(path) from fault
        raise Unavailable(
            "HSM_UNAVAILABLE", f"The PKCS#11 module {path} does not start ({_name(fault)}); check its configuration."
        ) from fault


def _name(fault: PKCS11Error) -> str:
    return type(fault).__name__ if type(fault) is not PKCS11Error else str(fault)


def _not_pkcs11(path: Path) -> WrongState:
    return WrongState("HSM_MODULE_INVALID", f"{path} is not a PKCS#11 module; name the vendor's PKCS#11 library.")
