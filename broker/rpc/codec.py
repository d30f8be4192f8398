"""Between the wire's values and the core's: enums, times, durations, and the two forms of an ECDSA signature."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Generic, TypeVar

from broker_api.v1 import (
    authorities_pb2,
    drift_pb2,
    imports_pb2,
    keys_pb2,
    leases_pb2,
    operations_pb2,
    operators_pb2,
    sessions_pb2,
    trust_pb2,
)
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from broker.core import kinds
from broker.core.errors import InvalidRequest
from broker.core.kinds import SignatureAlgorithm
from broker.core.reasons import Reason

E = TypeVar("E", bound=Enum)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
MAX_DURATION = timedelta(days=366)
LONG_AGES = timedelta(days=1_000_000)
"""For periods and ages, of which the core says which are sensible."""
KIBIBYTE = 1024


class Names(Generic[E]):
    """A wire enum and the core's enum of the same names, both ways.

    The pairs are made from the names themselves: a name that only one side has stops the start.
    """

    def __init__(self, wire: Any, core: type[E]) -> None:
        descriptor = wire.DESCRIPTOR
        prefix = descriptor.values_by_number[0].name.removesuffix("UNSPECIFIED")
        numbers = {value.name.removeprefix(prefix): value.number for value in descriptor.values if value.number}
        if numbers.keys() != core.__members__.keys():
            raise ValueError(f"{descriptor.full_name} and {core.__name__} do not have the same names")
        self._core = {number: core[name] for name, number in numbers.items()}
        self._wire = {core[name]: number for name, number in numbers.items()}

    def __iter__(self) -> Iterator[E]:
        return iter(self._wire)

    def optional(self, number: int) -> E | None:
        """The member, or None for UNSPECIFIED. The gate has refused every number that is not declared."""
        return self._core[number] if number else None

    def required(self, number: int, field: str) -> E:
        """The member; InvalidRequest ``FIELD_MISSING`` for UNSPECIFIED."""
        if not number:
            raise missing(field)
        return self._core[number]

    def wire(self, member: E) -> Any:
        """The number for a member."""
        return self._wire[member]


KEY_TYPE = Names(keys_pb2.KeyType, kinds.KeyType)
KEY_USAGE = Names(keys_pb2.KeyUsage, kinds.KeyUsage)
KEY_STATE = Names(keys_pb2.KeyState, kinds.KeyState)
VERSION_STATE = Names(keys_pb2.KeyVersionState, kinds.VersionState)
SIGNATURE_ALGORITHM = Names(keys_pb2.SignatureAlgorithm, kinds.SignatureAlgorithm)
ENCRYPTION_ALGORITHM = Names(keys_pb2.EncryptionAlgorithm, kinds.EncryptionAlgorithm)
PHASE = Names(keys_pb2.KeyVersionPhase, kinds.Phase)
IMPORT_STATE = Names(imports_pb2.ImportState, kinds.ImportState)
COPY_STANDING = Names(imports_pb2.CopyStanding, kinds.Standing)
DRIFT = Names(drift_pb2.Drift, kinds.Drift)
OPERATION_STATE = Names(operations_pb2.OperationState, kinds.OperationState)
AUTHORITY_STATE = Names(authorities_pb2.AuthorityState, kinds.OwnKeyState)
OPERATOR_STATE = Names(operators_pb2.OperatorState, kinds.OperatorState)
SESSION_STATE = Names(sessions_pb2.SessionState, kinds.SessionState)
LEASE_STATE = Names(leases_pb2.LeaseState, kinds.LeaseState)
PRESET = Names(trust_pb2.Preset, kinds.Preset)


def missing(field: str) -> InvalidRequest:
    """The refusal of a request that leaves out what it cannot do without."""
    return InvalidRequest(Reason.FIELD_MISSING, f"The field {field} is not set; set it and send again.", field=field)


def not_pem(field: str) -> InvalidRequest:
    """The refusal of a text that cannot be PEM."""
    return InvalidRequest(Reason.PEM_INVALID, f"The field {field} is not PEM; send the file as it is.", field=field)


def at_most(size: int, limit: int, field: str) -> None:
    """Refuse (``FIELD_TOO_LONG``) a field of more than ``limit`` bytes or items."""
    if size > limit:
        raise InvalidRequest(
            Reason.FIELD_TOO_LONG,
            f"The field {field} is too long: at most {limit} are taken.",
            field=field,
            limit=str(limit),
        )


def version(number: int) -> int:
    """A version number from the wire: 0 stands for the primary one."""
    if number < 0:
        raise InvalidRequest(
            Reason.VERSION_INVALID, "The version is negative; versions count from 1, 0 is the primary one."
        )
    return number


def keep(settlement: int) -> bool:
    """Whether what is held is to be kept; InvalidRequest ``FIELD_MISSING`` unless it says what is to become of it."""
    if not settlement:
        raise missing("settlement")
    return settlement == keys_pb2.SETTLEMENT_KEEP


def timestamp(moment: datetime | None) -> Timestamp | None:
    """A moment for the wire; None stays unset."""
    if moment is None:
        return None
    microseconds = (moment - EPOCH) // MICROSECOND
    return Timestamp(seconds=microseconds // 1_000_000, nanos=microseconds % 1_000_000 * 1000)


def moment(request: Any, field: str) -> datetime | None:
    """The moment in ``field``, None when unset; InvalidRequest ``TIME_INVALID`` outside the years 1 to 9999."""
    if not request.HasField(field):
        return None
    value: Timestamp = getattr(request, field)
    try:
        return value.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(Reason.TIME_INVALID, f"The field {field} is not a time; send one.", field=field) from error


def duration(request: Any, field: str, *, least: int = 1, most: timedelta = MAX_DURATION) -> timedelta | None:
    """The duration in ``field``: None when unset, whole seconds, ``least`` to ``most``; else ``DURATION_INVALID``."""
    if not request.HasField(field):
        return None
    value: Duration = getattr(request, field)
    # Compared before it is converted: a timedelta overflows far below what the wire can carry.
    if value.nanos or not least <= value.seconds <= most.total_seconds():
        raise InvalidRequest(
            Reason.DURATION_INVALID,
            f"The field {field} is not a whole number of seconds from {least} s to {most.days} days.",
            field=field,
        )
    return timedelta(seconds=value.seconds)


SCALAR_BYTES = {
    SignatureAlgorithm.ES256: 32,
    SignatureAlgorithm.ES256K: 32,
    SignatureAlgorithm.ES384: 48,
    SignatureAlgorithm.ES512: 66,
}
"""How long r and s are in the JOSE form (RFC 7518 3.4, RFC 8812 3.2)."""


def jose_from_der(signature: bytes, algorithm: SignatureAlgorithm) -> bytes:
    """The JOSE form of a DER ECDSA-Sig-Value; other signatures have one form and are returned as they are."""
    size = SCALAR_BYTES.get(algorithm)
    if size is None:
        return signature
    r, s = decode_dss_signature(signature)
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


def der_from_jose(signature: bytes, algorithm: SignatureAlgorithm | None) -> bytes:
    """The DER form of an ECDSA signature in the JOSE form; InvalidRequest ``SIGNATURE_ENCODING`` for a wrong length.

    Without an algorithm the length tells it. Only a signature that was padded to look like a longer curve's has both
    halves short of their length, so that one is refused as well: a signature has one JOSE form.
    """
    if algorithm is not None and algorithm not in SCALAR_BYTES:
        return signature
    sizes: Iterable[int] = {SCALAR_BYTES[algorithm]} if algorithm else sorted(set(SCALAR_BYTES.values()))
    half = len(signature) // 2
    r, s = int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
    shorter = max((size for size in sizes if size < half), default=0)
    if len(signature) % 2 or half not in sizes or (shorter and max(r, s) < 1 << (8 * shorter)):
        der = (
            " It looks like DER, which is the form that is taken when no encoding is named."
            if _is_der(signature)
            else ""
        )
        raise InvalidRequest(
            Reason.SIGNATURE_ENCODING,
            "The signature is not in the JOSE form: r followed by s, each as long as the order of the key's "
            f"curve.{der}",
        )
    return encode_dss_signature(r, s)


def _is_der(signature: bytes) -> bool:
    try:
        decode_dss_signature(signature)
    except ValueError:
        return False
    return True
