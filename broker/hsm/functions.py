"""The functions of a PKCS#11 module, reached as the standard has it: through C_GetFunctionList alone.

A module need export no other name (p11-kit's proxy does not), and each call of it may give another instance, which
knows no session of the first (the same proxy); so the list that python-pkcs11 was given is used here too. When a module
cannot be loaded, the loader's own reason is told: only a library that was loaded and has no such function is said to be
no PKCS#11 module.
"""

from __future__ import annotations

import ctypes
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from broker.core.errors import WrongState
from broker.core.reasons import Reason

if TYPE_CHECKING:
    from pkcs11._pkcs11 import lib as Library  # noqa: N812 - the binding's class has a lower-case name

_ORDER: Final = (
    "C_Initialize", "C_Finalize", "C_GetInfo", "C_GetFunctionList", "C_GetSlotList", "C_GetSlotInfo", "C_GetTokenInfo",
    "C_GetMechanismList", "C_GetMechanismInfo", "C_InitToken", "C_InitPIN", "C_SetPIN", "C_OpenSession",
    "C_CloseSession", "C_CloseAllSessions", "C_GetSessionInfo", "C_GetOperationState", "C_SetOperationState", "C_Login",
    "C_Logout", "C_CreateObject", "C_CopyObject", "C_DestroyObject", "C_GetObjectSize", "C_GetAttributeValue",
    "C_SetAttributeValue", "C_FindObjectsInit", "C_FindObjects", "C_FindObjectsFinal", "C_EncryptInit", "C_Encrypt",
    "C_EncryptUpdate", "C_EncryptFinal", "C_DecryptInit", "C_Decrypt", "C_DecryptUpdate", "C_DecryptFinal",
    "C_DigestInit", "C_Digest", "C_DigestUpdate", "C_DigestKey", "C_DigestFinal", "C_SignInit", "C_Sign",
    "C_SignUpdate", "C_SignFinal", "C_SignRecoverInit", "C_SignRecover", "C_VerifyInit", "C_Verify", "C_VerifyUpdate",
    "C_VerifyFinal", "C_VerifyRecoverInit", "C_VerifyRecover", "C_DigestEncryptUpdate", "C_DecryptDigestUpdate",
    "C_SignEncryptUpdate", "C_DecryptVerifyUpdate", "C_GenerateKey", "C_GenerateKeyPair", "C_WrapKey",
)  # fmt: skip
"""CK_FUNCTION_LIST of every version (pkcs11f.h), as far as anything here needs it."""

_ULONG: Final = ctypes.c_ulong
_ANY: Final = ctypes.c_void_p
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "C_Initialize": (_ANY,),
    "C_Finalize": (_ANY,),
    "C_GetSlotList": (ctypes.c_ubyte, _ANY, _ANY),
    "C_InitToken": (_ULONG, ctypes.c_char_p, _ULONG, ctypes.c_char_p),
    "C_InitPIN": (_ULONG, ctypes.c_char_p, _ULONG),
    "C_OpenSession": (_ULONG, _ULONG, _ANY, _ANY, _ANY),
    "C_GetSessionInfo": (_ULONG, _ANY),
    "C_Login": (_ULONG, _ULONG, ctypes.c_char_p, _ULONG),
    "C_Logout": (_ULONG,),
    "C_DestroyObject": (_ULONG, _ULONG),
    "C_GetAttributeValue": (_ULONG, _ULONG, _ANY, _ULONG),
    "C_SetAttributeValue": (_ULONG, _ULONG, _ANY, _ULONG),
    "C_FindObjectsInit": (_ULONG, _ANY, _ULONG),
    "C_FindObjects": (_ULONG, _ANY, _ULONG, _ANY),
    "C_FindObjectsFinal": (_ULONG,),
    "C_WrapKey": (_ULONG, _ANY, _ULONG, _ULONG, _ANY, _ANY),
}
_NOT_A_LIBRARY: Final = ("invalid ELF header", "file too short")
_OPENS_NOTHING: Final = "cannot open shared object file"


class Functions:
    """The functions of ``_TYPES`` as attributes; each returns its CK_RV."""

    def __init__(self, path: Path, library: Library) -> None:
        """WrongState ``HSM_MODULE_INVALID`` when one is missing from the list that the library was given."""
        places = ctypes.cast(list_of(library), ctypes.POINTER(_ANY))
        for name, types in _TYPES.items():
            address = places[1 + _ORDER.index(name)]  # the version comes first, padded to a pointer's size
            if not address:
                raise WrongState(Reason.HSM_MODULE_INVALID, f"The PKCS#11 module {path} has no function {name}.")
            setattr(self, name, ctypes.CFUNCTYPE(_ULONG, *types)(address))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def list_of(library: Library) -> int:
    """Where the CK_FUNCTION_LIST is that python-pkcs11 uses: the first field of its objects, which it does not show.

    The version of python-pkcs11 is locked, and a test holds this against a module that has one list only.
    """
    return ctypes.c_void_p.from_address(id(library) + object.__basicsize__).value or 0


def refuse_unloadable(path: Path) -> None:
    """Return if the module can be loaded and is one.

    WrongState ``HSM_MODULE_MISSING``, ``HSM_MODULE_UNSAFE``, ``HSM_MODULE_UNLOADABLE`` or ``HSM_MODULE_INVALID``.
    """
    _refuse_loose_file(path)
    library = _loaded(path)
    if not hasattr(library, "C_GetFunctionList"):
        raise _not_pkcs11(path, newer=hasattr(library, "C_GetInterface"))


def _refuse_loose_file(path: Path) -> None:
    """The module's code runs with the PIN in reach, so nobody else may be able to change it (SC-04)."""
    try:
        status = path.stat()
    except OSError as fault:
        raise WrongState(
            Reason.HSM_MODULE_MISSING,
            f"There is no PKCS#11 module to be had at {path} ({fault.strerror}); name the library by its full path.",
        ) from fault
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "not a file"
        raise WrongState(Reason.HSM_MODULE_MISSING, f"The PKCS#11 module {path} is {what}; name the library itself.")
    if status.st_uid not in {0, os.geteuid()} or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        real = "" if path.resolve() == path else f" (which is {path.resolve()})"
        raise WrongState(
            Reason.HSM_MODULE_UNSAFE,
            f"The PKCS#11 module {path}{real} can be changed by another user; let root own it, with mode 0644.",
        )


def _loaded(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as fault:
        said = str(fault)
        if any(sign in said for sign in _NOT_A_LIBRARY) and said.startswith(str(path)):
            raise WrongState(
                Reason.HSM_MODULE_INVALID,
                f"{path} is not a library and so not a PKCS#11 module (the loader says: {said}); name the vendor's "
                "PKCS#11 library.",
            ) from fault
        raise WrongState(
            Reason.HSM_MODULE_UNLOADABLE, f"The PKCS#11 module {path} cannot be loaded: {said}{_hint(path, said)}."
        ) from fault


def _hint(path: Path, said: str) -> str:
    """What follows from the loader's words together with what the system says; "" when nothing certain does."""
    if os.statvfs(path).f_flag & os.ST_NOEXEC:
        return "; its file system is mounted noexec, from which no code is run"
    if not os.access(path, os.R_OK, effective_ids=True):
        return (
            f"; the user {os.geteuid()} that runs the broker may not read it (mode {path.stat().st_mode & 0o777:04o})"
        )
    if _OPENS_NOTHING in said and not said.startswith(str(path)):
        return "; it needs that library, so install it or tell the system's loader where it is (ldconfig)"
    return ""


def _not_pkcs11(path: Path, *, newer: bool) -> WrongState:
    if newer:
        return WrongState(
            Reason.HSM_MODULE_INVALID,
            f"The PKCS#11 module {path} offers C_GetInterface and no C_GetFunctionList, which the broker needs; ask "
            "its vendor for a library that offers both.",
        )
    return WrongState(
        Reason.HSM_MODULE_INVALID,
        f"{path} is not a PKCS#11 module: it was loaded and has no C_GetFunctionList; name the vendor's PKCS#11 "
        "library.",
    )
