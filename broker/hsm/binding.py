"""Which object of the token a key is.

At its generation each object gets a label that says for what it was made and as what ("broker:key:payments/1"). A row
of the database can name any id; it cannot change a label. So whatever is to be done with a key, the label is compared
first.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from typing import Final, NamedTuple

import structlog
from pkcs11 import Attribute, ObjectClass
from pkcs11 import KeyType as CkKeyType

from broker.core.errors import WrongState
from broker.core.kinds import KeyType, KeyUsage, Purpose
from broker.core.ports import RESERVED_IDS, KeyRef
from broker.core.reasons import Reason
from broker.hsm.mechanisms import AES_BITS, CURVE_OIDS
from broker.hsm.sanity import CURVES, RSA_BITS

_log = structlog.get_logger(__name__)

ULONG: Final = ctypes.sizeof(ctypes.c_ulong)
CK_TYPES: Final = {
    **dict.fromkeys(CURVES, CkKeyType.EC),
    **dict.fromkeys(RSA_BITS, CkKeyType.RSA),
    **dict.fromkeys(AES_BITS, CkKeyType.AES),
    KeyType.ED25519: CkKeyType.EC_EDWARDS,
}
_PREFIX: Final = b"broker:"
_WHAT: Final = {
    Purpose.KEY: "the key {}",
    Purpose.ROOT: "the root key {}",
    Purpose.AUDIT: "the audit key",
    Purpose.OPERATOR_CA: "the operator CA's key",
    Purpose.SERVER_CA: "the server CA's key",
    Purpose.ROWS: "the key of the rows",
}
_RANDOM_IDS: Final = frozenset({Purpose.KEY, Purpose.ROOT})
_FLAGS: Final = {Attribute.SIGN: KeyUsage.SIGN, Attribute.DECRYPT: KeyUsage.ENCRYPT}
_NEVER: Final = (Attribute.WRAP, Attribute.UNWRAP, Attribute.DERIVE)
ROLES: Final[Mapping[int, int]] = dict.fromkeys((*_FLAGS, *_NEVER, Attribute.SENSITIVE), 1)
"""The attributes that ``conflict`` wants to see, and their room."""
_SIZES: Final[Mapping[int, int]] = {
    Attribute.KEY_TYPE: ULONG,
    Attribute.VALUE_LEN: ULONG,
    Attribute.MODULUS: 1024,
    Attribute.EC_PARAMS: 128,
}


class Binding(NamedTuple):
    """What the token must say of an object before it is taken for this key. Handles are remembered by it."""

    hsm_id: bytes
    label: bytes
    type: KeyType
    usage: KeyUsage
    check: bytes | None

    @property
    def secret_class(self) -> ObjectClass:
        """The class of the half that is secret."""
        return ObjectClass.SECRET_KEY if self.type in AES_BITS else ObjectClass.PRIVATE_KEY

    def identity(self) -> dict[int, bytes]:
        """What the token says of the secret half of this key and of no other object."""
        kind = int(self.secret_class).to_bytes(ULONG, sys.byteorder)
        return {Attribute.ID: self.hsm_id, Attribute.LABEL: self.label, Attribute.CLASS: kind}

    def sizes(self) -> dict[int, int]:
        """The attributes that ``fits`` wants to see, and their room."""
        extent = Attribute.VALUE_LEN if self.type in AES_BITS else Attribute.EC_PARAMS
        extent = Attribute.MODULUS if self.type in RSA_BITS else extent
        return {**dict.fromkeys(_FLAGS, 1), Attribute.KEY_TYPE: ULONG, extent: _SIZES[extent]}

    def fits(self, read: Mapping[int, bytes]) -> bool:
        """Whether the secret half has the type, the usage and, where the token gives it, the size or curve."""
        flags = {flag: bytes([usage is self.usage]) for flag, usage in _FLAGS.items()}
        if any(read.get(flag) != value for flag, value in flags.items()) or _number(read, Attribute.KEY_TYPE) != int(
            CK_TYPES[self.type]
        ):
            return False
        if self.type in AES_BITS:
            return _number(read, Attribute.VALUE_LEN) * 8 in {0, AES_BITS[self.type]}
        if self.type in RSA_BITS:
            return int.from_bytes(read.get(Attribute.MODULUS, b""), "big").bit_length() in {0, RSA_BITS[self.type]}
        # An Edwards key has one curve here, and tokens have several names for it.
        return self.type is KeyType.ED25519 or read.get(Attribute.EC_PARAMS, b"") in {b"", CURVE_OIDS[self.type]}


def bind(purpose: Purpose, key: KeyRef) -> Binding:
    """What the token must say of this key; WrongState ``KEY_NOT_THIS`` when its id is one of the broker's own keys."""
    binding = Binding(
        key.hsm_id, b"%b%b:%b" % (_PREFIX, purpose.encode(), key.name.encode()), key.type, key.usage, key.check
    )
    if purpose in _RANDOM_IDS and key.hsm_id.startswith(RESERVED_IDS):
        raise not_this(binding.label, "the id in its row belongs to the broker's own keys")
    return binding


def conflict(read: Mapping[int, bytes]) -> bool:
    """Whether a secret half could open what it or another wraps, derive, do two things, or be read (HS-01)."""
    purposes = sum(read.get(flag) == b"\1" for flag in _FLAGS)
    forbidden = any(read.get(role) == b"\1" for role in _NEVER)
    return purposes != 1 or forbidden or read.get(Attribute.SENSITIVE) != b"\1"


def purpose_of(label: bytes) -> Purpose | None:
    """For what the object with this label was made; None: it is none of the broker's."""
    purpose, colon, _ = label.removeprefix(_PREFIX).partition(b":")
    if not label.startswith(_PREFIX) or not colon:
        return None
    return next((one for one in Purpose if one.encode() == purpose), None)


def not_this(label: bytes, why: str) -> WrongState:
    """The refusal of an object that is not the key it is said to be, told in the log as an alarm."""
    return _alarm(Reason.KEY_NOT_THIS, label, f"{why}. Find out who can write to the database or the token")


def ambiguous(label: bytes) -> WrongState:
    """The refusal of a key that shares its id with another object, told in the log as an alarm."""
    return _alarm(
        Reason.KEY_AMBIGUOUS,
        label,
        "the token holds another key object under its id, and the broker does not guess which is its own. Find out who "
        "made it",
    )


def conflicting(label: bytes) -> WrongState:
    """The refusal of a key that may do more than it was made for, told in the log as an alarm."""
    return _alarm(
        Reason.HSM_KEY_CONFLICT,
        label,
        "what bears its label and id has conflicting roles or is readable: somebody changed or planted it. Find out "
        "who can write to the token",
    )


def not_adopted(label: bytes) -> WrongState:
    """The refusal of a key that was made before labels said what a key is for."""
    return WrongState(
        Reason.HSM_NOT_ADOPTED,
        f"The token holds {_what(label)} as an earlier release has labelled it; stop the broker and run `broker init` "
        "for its folder once.",
    )


def _alarm(reason: str, label: bytes, why: str) -> WrongState:
    _log.error(
        "alarm: a key in the token is not what it should be", reason=reason, key=label.decode(errors="replace"), why=why
    )
    return WrongState(reason, f"The HSM did nothing with {_what(label)}: {why}.")


def _what(label: bytes) -> str:
    purpose, name = purpose_of(label), label.decode(errors="replace").split(":", 2)[-1]
    return _WHAT[purpose].format(name) if purpose else "the key"


def _number(read: Mapping[int, bytes], attribute: int) -> int:
    return int.from_bytes(read.get(attribute, b""), sys.byteorder)
