"""Rows that only a broker with this HSM can have written: each carries a MAC over what it says and where it stands.

The MAC is HMAC-SHA-256 (RFC 2104), cut to 128 bits (5), over the table's name and every cell, so also over the primary
key and the revision: a row that was altered, copied to another place or made up elsewhere is refused by name. What is
NULL is left out, so that a nullable column can be added later without a new MAC for every row.

A row that was put back as it once was has a good MAC. What tells it is ``floors``, while this process knows better,
and ``ledger``, which sums up the weights of all rows; a weight is a second HMAC, which no table holds.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final, Generic, NamedTuple, TypeVar

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from broker.core.errors import WrongState
from broker.core.model import Lease, Record, SecretVersion
from broker.core.reasons import Reason
from broker.core.records import kinds
from broker.store.committed import Committed
from broker.store.rows import FIELDS, NAMES, PLACES, key_in, rank_of, record_of, row_of, shown_key

R = TypeVar("R", bound=Record)

KEY_BYTES = 32
MAC_BYTES = 16
WEIGHT_BYTES = 32

READ_OFTEN = kinds("read_often")
"""An equal row is the same record, and is not checked and taken apart again."""

REMEMBERED = 4096
"""Records that are kept for that."""

WEIGHED = 8192
"""Weights that are kept: what is made by one call is often changed or ended by the next."""

MAX_REMEMBERED = 1024
"""Bytes of a secret's sealed fields up to which it is kept."""

SOON_READ = READ_OFTEN | {Lease}
"""What a call has written, the next one reads."""

_SEALED = PLACES[SecretVersion]["sealed"]


class Read(NamedTuple, Generic[R]):
    """A genuine row: its record, primary key and rank (``rows.rank``)."""

    record: R
    key: tuple[Any, ...]
    rank: int


class Rows:
    """Records to rows with a MAC, and back. ``key``: 32 bytes that nobody else has."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError("the key of the rows has 32 bytes")
        uses = (b"row-mac-v1", b"row-weight-v1", b"row-sums-v1")
        mac_key, weight_key, self._sums_key = (hmac.digest(key, use, "sha256") for use in uses)
        self._macs, self._weights = keyed(mac_key), keyed(weight_key)
        self.kept_weight: Callable[..., int] = lru_cache(WEIGHED)(self.weight)
        """As ``weight``, remembered: for what calls change, not for whole tables, which would drive that out."""
        self._remembered: Callable[..., Any] = lru_cache(REMEMBERED, typed=True)(self._checked)  # 1 and True are equal
        self._committed = Committed()

    def __repr__(self) -> str:
        return "Rows()"

    def row(self, record: Record) -> dict[str, Any]:
        """The cells of a record and, under ``mac``, their MAC; InvalidRequest ``VALUE_NOT_STORABLE`` as ``row_of``."""
        cells = row_of(record)
        return {**cells, "mac": self.mac_of(type(record), tuple(cells.values()))}

    def mac(self, record: Record) -> bytes:
        """The MAC of the row that holds this record."""
        return self.mac_of(type(record), tuple(row_of(record).values()))

    def read(self, kind: type[R], row: Sequence[Any]) -> Read[R]:
        """What is in a row whose last cell is its MAC; WrongState ``ROW_FORGED`` or ``ROW_DAMAGED``."""
        often = kind in READ_OFTEN and (kind is not SecretVersion or _small(row))
        made: Read[R] = self._remembered(kind, *row) if often else self._checked(kind, *row)
        return made

    def committed(self, rows: Iterable[tuple[type[Any], Sequence[Any]]]) -> None:
        """This process has written these rows, and it is certain that they are in the database."""
        self._committed.add(
            [one for one in rows if one[0] in SOON_READ and (one[0] is not SecretVersion or _small(one[1]))]
        )

    def genuine(self, kind: type[Any], row: Sequence[Any]) -> bool:
        """Whether a broker with this key has written the row so, under this name."""
        return type(row[-1]) is bytes and hmac.compare_digest(row[-1], self.mac_of(kind, row[:-1]))

    def known(self, kind: type[Any], row: Sequence[Any]) -> bool:
        """As ``genuine``; the MAC of a row that this process has committed itself is not made again, once."""
        return self._committed.take(kind, row) or self.genuine(kind, row)

    def weight(self, kind: type[Any], mac: bytes) -> int:
        """What a row with this MAC adds to the sum of its table, modulo 2^256."""
        return int.from_bytes(self._weights(_TAGS[kind] + mac), "big")

    def mac_over(self, *parts: str | int | bytes) -> bytes:
        """The MAC of something else than a record; the first part says what."""
        return self._macs(ascii(parts).encode("ascii"))[:MAC_BYTES]

    def hidden(self, nonce: bytes, shown: bytes) -> bytes:
        """Sums as nobody else can read them, and back.

        From sums in the clear a DBA would learn what each row weighs, and could choose thousands of older rows that
        weigh together what the newest ones do (Wagner, CRYPTO 2002).
        """
        stream = hashlib.shake_256(self._sums_key + nonce).digest(len(shown))
        return (int.from_bytes(shown, "big") ^ int.from_bytes(stream, "big")).to_bytes(len(shown), "big")

    def mac_of(self, kind: type[Any], cells: Sequence[Any]) -> bytes:
        """The MAC of a row with these cells."""
        always, sometimes = _PARTS[kind]
        there = [(name, cells[at]) for name, at in sometimes if cells[at] is not None]
        return self._macs(ascii((NAMES[kind], always(cells), there)).encode("ascii"))[:MAC_BYTES]

    def _checked(self, kind: type[R], *row: Any) -> Read[R]:
        if not self.known(kind, row):
            raise forged(kind, key_in(kind, row), "is not as the broker wrote it")
        return Read(record_of(kind, row[:-1]), key_in(kind, row), rank_of(kind, row))


def keyed(key: bytes) -> Callable[[bytes], bytes]:
    """HMAC-SHA-256 under one key, whose schedule is made once: that costs more than the MAC of a row."""
    schedule = HMAC(key, SHA256())

    def mac(text: bytes) -> bytes:
        one = schedule.copy()
        one.update(text)
        return one.finalize()

    return mac


MEND_ROW: Final = (
    "put that row back exactly as it last was, from a backup made after its last change (docs/operations.md), and find "
)
"out who can write to the database"
"""The one remedy: any older state of the row is refused too, and `broker accept-restore` would believe it."""


def forged(kind: type[Any], key: Sequence[Any], how: str) -> WrongState:
    """The refusal of a row, named by its primary key, that somebody else has changed."""
    return WrongState(
        Reason.ROW_FORGED,
        f"The stored {kind.__name__} {shown_key(key)} {how}: somebody else writes to the database. Nothing was done "
        f"with it; {MEND_ROW}.",
        kind=kind.__name__,
    )


def _parts(kind: type[Any]) -> tuple[Callable[[Sequence[Any]], Any], list[tuple[str, int]]]:
    """What is always there, and the cells that may be NULL with their names."""
    fields = list(enumerate(FIELDS[kind]))
    always = itemgetter(*(at for at, field in fields if not field.nullable))
    return always, [(field.name, at) for at, field in fields if field.nullable]


def _small(version: Sequence[Any]) -> bool:
    return type(version[_SEALED]) is bytes and len(version[_SEALED]) <= MAX_REMEMBERED


_PARTS = {kind: _parts(kind) for kind in FIELDS}
_TAGS = {kind: NAMES[kind].encode() + b"\0" for kind in FIELDS}
