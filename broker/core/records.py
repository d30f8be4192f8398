"""Each kind of record that the store keeps, declared once.

From this alone follow its table and its rows, what a page may be asked for, what is due, what the audit tells of it,
the store in memory and the samples that the tests have, and docs/records.md.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from types import MappingProxyType
from typing import Any, TypeVar

from broker.core.approval import Approval
from broker.core.certified import Certified
from broker.core.findings import DriftReport
from broker.core.model import (
    AuditHead,
    Import,
    Key,
    KeyMove,
    KeyUsed,
    KeyVersion,
    Lease,
    Operation,
    Operator,
    PolicyDocument,
    Receipt,
    Record,
    RootKey,
    Secret,
    SecretRead,
    SecretVersion,
    Session,
    Target,
    TrustRule,
    UsedToken,
)
from broker.core.own_key import OwnKey
from broker.core.schedule import KeySchedule
from broker.core.token_claim import TokenClaim

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """One kind of record.

    ``deciding``: it says who may do what with which key; such tables are small and often looked through.
    ``read_often``: calls read it over and over, so what was made of a row is remembered. ``passing``: it comes and goes
    by the thousand. ``randomly_named``: its name is random, or was looked for by what adds it, and so locked.
    """

    table: str
    """A row's MAC speaks of it, so it is never renamed."""
    key: tuple[str, ...]
    """The fields of the primary key, in the order of pages."""
    former_key: int | None = None
    """How many of these were the key once: journals of that time name the rows by these alone."""
    filters: tuple[str, ...] = ()
    """The fields, besides those of the key, that a page or a count may be asked for."""
    indexes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What is looked for otherwise than by primary key, fast: the fields by the end of the index's name."""
    due: str = ""
    """The time that ``Store.due`` goes by; "": such a record is never due."""
    due_in: str = ""
    """The state that it is due in unless another one is asked for; "": whatever its state."""
    told: bool = True
    """Its rows are named in the audit; those that are not come by the hundred, and open nothing by themselves."""
    summed: bool = True
    """Its table has a sum in the ledger."""
    never_deleted: bool = False
    """No broker deletes it, or (a used token) not while anybody can ask for it."""
    deciding: bool = False
    read_often: bool = False
    passing: bool = False
    randomly_named: bool = False


RECORDS: Mapping[type[Any], Declaration] = MappingProxyType(
    {
        Key: Declaration(table="keys", key=("name",), filters=("state",), deciding=True, read_often=True),
        KeyVersion: Declaration(
            table="key_versions", key=("key", "number"), filters=("state",), deciding=True, read_often=True
        ),
        Target: Declaration(table="targets", key=("name",), deciding=True),
        Import: Declaration(
            table="imports",
            key=("key", "version", "target", "remote_name"),
            former_key=3,
            filters=("state", "failure"),
        ),
        Operator: Declaration(
            table="operators", key=("name",), filters=("state",), never_deleted=True, deciding=True, read_often=True
        ),
        PolicyDocument: Declaration(table="policy_documents", key=("version",), never_deleted=True, deciding=True),
        Receipt: Declaration(
            table="receipts",
            key=("principal", "request_id"),
            filters=("resource", "version"),
            due="created_at",
            indexes={"due": ("created_at",)},
            told=False,
        ),
        AuditHead: Declaration(
            table="audit_heads",
            key=("chain", "sequence"),
            told=False,
            summed=False,  # each has the HSM's signature
        ),
        TrustRule: Declaration(
            table="trust_rules",
            key=("name",),
            filters=("issuer",),
            indexes={"issuer": ("issuer",)},
            deciding=True,
            read_often=True,
        ),
        Secret: Declaration(table="secrets", key=("name",), never_deleted=True, read_often=True),
        SecretVersion: Declaration(
            table="secret_versions",
            key=("secret", "number"),
            filters=("state", "root"),
            indexes={"root": ("root",)},
            never_deleted=True,
            read_often=True,
        ),
        SecretRead: Declaration(table="secret_reads", key=("secret",), told=False),
        RootKey: Declaration(table="root_keys", key=("version",), filters=("state",), deciding=True),
        Session: Declaration(
            table="sessions",
            key=("id",),
            filters=("state", "principal", "issuer", "rule"),
            due="expires_at",
            due_in="active",
            indexes={
                "due": ("state", "expires_at"),
                "principal": ("principal", "state"),
                "issuer": ("issuer", "state"),
            },
            read_often=True,
            passing=True,
            randomly_named=True,
        ),
        Lease: Declaration(
            table="leases",
            key=("id",),
            filters=("state", "principal", "session", "resource", "version"),
            due="expires_at",
            due_in="active",
            indexes={
                "due": ("state", "expires_at"),
                "principal": ("principal", "state"),
                "session": ("session", "state"),
            },
            told=False,
            randomly_named=True,
        ),
        UsedToken: Declaration(
            table="used_tokens",
            key=("issuer", "jti"),
            due="until",
            indexes={"due": ("until",)},
            never_deleted=True,
            passing=True,
        ),
        Operation: Declaration(
            table="operations",
            key=("subject", "number"),
            filters=("state",),
            due="due_at",
            due_in="running",
            indexes={"due": ("state", "due_at")},
            passing=True,
        ),
        KeyMove: Declaration(table="key_moves", key=("key", "version", "number"), never_deleted=True),
        Approval: Declaration(
            table="approvals",
            key=("id",),
            filters=("state", "digest", "requester"),
            due="due_at",
            due_in="open",
            indexes={"due": ("state", "due_at"), "digest": ("digest",)},
            randomly_named=True,
        ),
        KeySchedule: Declaration(
            table="key_schedules",
            key=("key",),
            filters=("state",),
            due="look_at",
            due_in="active",
            indexes={"due": ("state", "look_at")},
        ),
        KeyUsed: Declaration(table="key_uses", key=("key",), told=False),
        DriftReport: Declaration(table="drift_reports", key=("place",), told=False),
        OwnKey: Declaration(table="own_keys", key=("name", "version"), filters=("state",), deciding=True),
        TokenClaim: Declaration(table="token_claims", key=("name",), never_deleted=True),
        Certified: Declaration(table="operator_certificates", key=("operator",), told=False),
    }
)
"""In the order of the sums in the ledger and of what an inspection looks at: a new kind comes last."""

DECIDING = tuple(one.table for one in RECORDS.values() if one.deciding)
"""The tables that say who may do what with which key."""


def kinds(trait: str) -> frozenset[type[Any]]:
    """The kinds whose declaration has this trait: ``read_often``, say."""
    return frozenset(kind for kind, one in RECORDS.items() if getattr(one, trait))


def renewed(record: R, **changes: Any) -> R:
    """``dataclasses.replace`` for a record, which a call does often, in a fraction of its time."""
    names, values = _WHOLE[type(record)]
    return type(record)(**{**dict(zip(names, values(record), strict=True)), **changes})


def key_of(record: Record) -> tuple[Any, ...]:
    """The primary key of a record."""
    single, found = _KEYS[type(record)]
    return (found(record),) if single else found(record)


_WHOLE = {
    kind: (names, attrgetter(*names)) for kind in RECORDS for names in [tuple(each.name for each in fields(kind))]
}

_KEYS = {kind: (len(one.key) == 1, attrgetter(*one.key)) for kind, one in RECORDS.items()}


_ADMITTED = {kind: frozenset({*one.key, *one.filters}) for kind, one in RECORDS.items()}


def check_asked(
    kind: type[Any], where: Collection[str], under: Sequence[str | int] = (), begins: str = ""
) -> tuple[str, ...]:
    """The fields of the key that ``under`` names; ValueError for what is not declared, which is a bug of who asks.

    ``begins`` ends in a character of ASCII, so that there is a next text behind it.
    """
    one = RECORDS[kind]
    named = one.key[: len(under)]
    if not _ADMITTED[kind].issuperset(where) or any(name in where for name in named):
        raise ValueError(f"a {kind.__name__} is not looked for by {sorted(where)}, says core.records")
    if len(under) >= len(one.key) or (begins and not begins[-1].isascii()):
        raise ValueError(f"no beginning of the primary key of a {kind.__name__}")
    return named


def due_of(kind: type[Any], state: str) -> tuple[str, str]:
    """The time that ``Store.due`` goes by, and the state it looks in; ValueError where there is no such question."""
    one = RECORDS[kind]
    if not one.due or (state and not one.due_in):
        raise ValueError(
            f"a {kind.__name__} is not due{' in a state' if one.due else ''}: core.records declares what is"
        )
    return one.due, state or one.due_in
