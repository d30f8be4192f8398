"""What a module's return codes are called, and which exception of the binding each of them is."""

from __future__ import annotations

import re
from typing import Final

from pkcs11 import exceptions as ck
from pkcs11.exceptions import PKCS11Error

NAMES: Final[dict[int, str]] = {
    0x000: "OK",
    0x001: "CANCEL",
    0x002: "HOST_MEMORY",
    0x003: "SLOT_ID_INVALID",
    0x005: "GENERAL_ERROR",
    0x006: "FUNCTION_FAILED",
    0x007: "ARGUMENTS_BAD",
    0x008: "NO_EVENT",
    0x009: "NEED_TO_CREATE_THREADS",
    0x00A: "CANT_LOCK",
    0x010: "ATTRIBUTE_READ_ONLY",
    0x011: "ATTRIBUTE_SENSITIVE",
    0x012: "ATTRIBUTE_TYPE_INVALID",
    0x013: "ATTRIBUTE_VALUE_INVALID",
    0x01B: "ACTION_PROHIBITED",
    0x020: "DATA_INVALID",
    0x021: "DATA_LEN_RANGE",
    0x030: "DEVICE_ERROR",
    0x031: "DEVICE_MEMORY",
    0x032: "DEVICE_REMOVED",
    0x040: "ENCRYPTED_DATA_INVALID",
    0x041: "ENCRYPTED_DATA_LEN_RANGE",
    0x042: "AEAD_DECRYPT_FAILED",
    0x050: "FUNCTION_CANCELED",
    0x051: "FUNCTION_NOT_PARALLEL",
    0x054: "FUNCTION_NOT_SUPPORTED",
    0x060: "KEY_HANDLE_INVALID",
    0x062: "KEY_SIZE_RANGE",
    0x063: "KEY_TYPE_INCONSISTENT",
    0x064: "KEY_NOT_NEEDED",
    0x065: "KEY_CHANGED",
    0x066: "KEY_NEEDED",
    0x067: "KEY_INDIGESTIBLE",
    0x068: "KEY_FUNCTION_NOT_PERMITTED",
    0x069: "KEY_NOT_WRAPPABLE",
    0x06A: "KEY_UNEXTRACTABLE",
    0x070: "MECHANISM_INVALID",
    0x071: "MECHANISM_PARAM_INVALID",
    0x082: "OBJECT_HANDLE_INVALID",
    0x090: "OPERATION_ACTIVE",
    0x091: "OPERATION_NOT_INITIALIZED",
    0x0A0: "PIN_INCORRECT",
    0x0A1: "PIN_INVALID",
    0x0A2: "PIN_LEN_RANGE",
    0x0A3: "PIN_EXPIRED",
    0x0A4: "PIN_LOCKED",
    0x0B0: "SESSION_CLOSED",
    0x0B1: "SESSION_COUNT",
    0x0B3: "SESSION_HANDLE_INVALID",
    0x0B4: "SESSION_PARALLEL_NOT_SUPPORTED",
    0x0B5: "SESSION_READ_ONLY",
    0x0B6: "SESSION_EXISTS",
    0x0B7: "SESSION_READ_ONLY_EXISTS",
    0x0B8: "SESSION_READ_WRITE_SO_EXISTS",
    0x0C0: "SIGNATURE_INVALID",
    0x0C1: "SIGNATURE_LEN_RANGE",
    0x0D0: "TEMPLATE_INCOMPLETE",
    0x0D1: "TEMPLATE_INCONSISTENT",
    0x0E0: "TOKEN_NOT_PRESENT",
    0x0E1: "TOKEN_NOT_RECOGNIZED",
    0x0E2: "TOKEN_WRITE_PROTECTED",
    0x0F0: "UNWRAPPING_KEY_HANDLE_INVALID",
    0x0F1: "UNWRAPPING_KEY_SIZE_RANGE",
    0x0F2: "UNWRAPPING_KEY_TYPE_INCONSISTENT",
    0x100: "USER_ALREADY_LOGGED_IN",
    0x101: "USER_NOT_LOGGED_IN",
    0x102: "USER_PIN_NOT_INITIALIZED",
    0x103: "USER_TYPE_INVALID",
    0x104: "USER_ANOTHER_ALREADY_LOGGED_IN",
    0x105: "USER_TOO_MANY_TYPES",
    0x110: "WRAPPED_KEY_INVALID",
    0x112: "WRAPPED_KEY_LEN_RANGE",
    0x113: "WRAPPING_KEY_HANDLE_INVALID",
    0x114: "WRAPPING_KEY_SIZE_RANGE",
    0x115: "WRAPPING_KEY_TYPE_INCONSISTENT",
    0x120: "RANDOM_SEED_NOT_SUPPORTED",
    0x121: "RANDOM_NO_RNG",
    0x130: "DOMAIN_PARAMS_INVALID",
    0x140: "CURVE_NOT_SUPPORTED",
    0x150: "BUFFER_TOO_SMALL",
    0x160: "SAVED_STATE_INVALID",
    0x170: "INFORMATION_SENSITIVE",
    0x180: "STATE_UNSAVEABLE",
    0x190: "CRYPTOKI_NOT_INITIALIZED",
    0x191: "CRYPTOKI_ALREADY_INITIALIZED",
    0x1A0: "MUTEX_BAD",
    0x1A1: "MUTEX_NOT_LOCKED",
    0x1B0: "NEW_PIN_MODE",
    0x1B1: "NEXT_OTP",
    0x1B5: "EXCEEDED_MAX_ITERATIONS",
    0x1B6: "FIPS_SELF_TEST_FAILED",
    0x1B7: "LIBRARY_LOAD_FAILED",
    0x1B8: "PIN_TOO_WEAK",
    0x1B9: "PUBLIC_KEY_INVALID",
    0x200: "FUNCTION_REJECTED",
    0x201: "TOKEN_RESOURCE_EXCEEDED",
    0x202: "OPERATION_CANCEL_FAILED",
    0x203: "KEY_EXHAUSTED",
    0x204: "PENDING",
    0x205: "SESSION_ASYNC_NOT_SUPPORTED",
    0x206: "SEED_RANDOM_REQUIRED",
    0x207: "OPERATION_NOT_VALIDATED",
    0x208: "TOKEN_NOT_INITIALIZED",
    0x209: "PARAMETER_SET_NOT_SUPPORTED",
}
"""Every code of PKCS#11 3.2, without its CKR_."""

_P11_KIT: Final[dict[int, str]] = {
    0x1C0: "EXCEEDED_MAX_ITERATIONS",
    0x1C1: "FIPS_SELF_TEST_FAILED",
    0x1C2: "LIBRARY_LOAD_FAILED",
    0x1C3: "PIN_TOO_WEAK",
    0x1C4: "PUBLIC_KEY_INVALID",
}
"""Where p11-kit's header, with which some modules are built, has other numbers than the standard."""
_VENDOR: Final = 0x8000_0000
_SPELT_OTHERWISE: Final[dict[type[PKCS11Error], str]] = {
    ck.AnotherUserAlreadyLoggedIn: "USER_ANOTHER_ALREADY_LOGGED_IN",
    ck.FunctionCancelled: "FUNCTION_CANCELED",
    ck.TokenNotRecognised: "TOKEN_NOT_RECOGNIZED",
}
NO_CODE: Final = frozenset({ck.MultipleObjectsReturned, ck.MultipleTokensReturned, ck.NoSuchKey, ck.NoSuchToken})
"""What the binding raises by itself."""


def _squeezed(name: str) -> str:
    return name.replace("_", "").lower()


def _exceptions() -> dict[int, type[PKCS11Error]]:
    codes = {_squeezed(name): code for code, name in NAMES.items()}
    kinds = [kind for kind in PKCS11Error.__subclasses__() if kind.__module__ == ck.__name__ and kind not in NO_CODE]
    return {codes[_squeezed(_SPELT_OTHERWISE.get(kind, kind.__name__))]: kind for kind in kinds}


EXCEPTIONS: Final = _exceptions()
_CODES: Final = {kind: code for code, kind in EXCEPTIONS.items()}
_SENTENCES: Final = {"already initialized": 0x191, "not initialized": 0x190}
"""What the binding says instead of these codes."""
_UNMAPPED: Final = re.compile(r"0x([0-9a-fA-F]+)\Z", re.ASCII)


class CodeError(PKCS11Error):
    """A code for which the binding has no exception of its own."""

    def __init__(self, code: int) -> None:
        super().__init__(f"Unmapped error code {code:#x}")


def name_of(code: int) -> str:
    """The standard's name of a code; of a vendor's, and of one that is in no standard, the number too."""
    if known := NAMES.get(code) or _P11_KIT.get(code):
        return f"CKR_{known}"
    return f"CKR_VENDOR_DEFINED {code:#x}" if code & _VENDOR else f"CKR {code:#x}"


def error_of(code: int) -> PKCS11Error:
    """The exception for a code that is not CKR_OK."""
    kind = EXCEPTIONS.get(code)
    return kind() if kind else CodeError(code)


def told(fault: PKCS11Error) -> str:
    """The code that an exception stands for, by name; what it says itself when it stands for none."""
    code = _CODES.get(type(fault))
    if code is None and (found := _UNMAPPED.search(str(fault))):
        code = int(found[1], 16)
    elif code is None:
        code = next((code for sentence, code in _SENTENCES.items() if sentence in str(fault)), None)
    return name_of(code) if code is not None else str(fault) or type(fault).__name__
