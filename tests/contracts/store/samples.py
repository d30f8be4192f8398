"""Records and audit entries for the store's tests, an opened store, and a second reader of the journal's format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.core.audit.heads import signed_by
from broker.core.entries import AuditEntry, Phase, head_statement
from broker.core.kinds import (
    KeyState,
    KeyType,
    KeyUsage,
    LeaseState,
    MatcherKind,
    Preset,
    SessionState,
    VersionState,
)
from broker.core.model import (
    AuditHead,
    Key,
    KeyVersion,
    Lease,
    Matcher,
    Record,
    Session,
    TrustRule,
)
from broker.core.ports import Store
from broker.core.records import RECORDS
from broker.store.chain import Tail
from broker.store.config import StoreConfig
from broker.store.journal import Journal
from broker.store.sql import SqlStore
from tests.servers.patience import PATIENCE

R = TypeVar("R", bound=Any)

T0 = datetime(2026, 11, 23, 5, 0, 0, 123456, tzinfo=UTC)


def now() -> datetime:
    return T0


def entry(call: str = "call", **changes: Any) -> AuditEntry:
    plain = AuditEntry(
        time=T0,
        phase=Phase.OUTCOME,
        call_id=call,
        rpc="KeyService/CreateKey",
        request_id="",
        principal="operator/alice",
        authn="mtls",
        credential="0a1b",
        peer="ipv4:127.0.0.1:50000",
        resource="key/payments",
        decision="allow",
        policies=("operators",),
        policy_version=1,
        outcome="ok",
        reason="",
        facts={"version": 1},
    )
    return replace(plain, **changes)


def key(name: str = "payments", **changes: Any) -> Key:
    plain = Key(
        name=name,
        type=KeyType.EC_P256,
        usage=KeyUsage.SIGN,
        exportable=True,
        labels={"team": "billing", "env": "prod"},
        owner="operator/alice",
        state=KeyState.ENABLED,
        primary=1,
        latest=2,
        created_at=T0,
    )
    return replace(plain, **changes)


def version(name: str = "payments", number: int = 1, **changes: Any) -> KeyVersion:
    plain = KeyVersion(
        key=name,
        number=number,
        state=VersionState.ENABLED,
        hsm_id=bytes(range(16)),
        public_key=b"\x30\x00\xff",
        sealed=False,
        created_at=T0,
    )
    return replace(plain, **changes)


def head(chain: str = "c", sequence: int = 1, **changes: Any) -> AuditHead:
    return replace(
        AuditHead(chain=chain, sequence=sequence, hash="ab" * 32, signed_at=T0, signature=b"\x30\x01"), **changes
    )


def session(name: str = "s", **changes: Any) -> Session:
    plain = Session(
        id=name,
        token_hash=bytes(range(32)),
        principal="pipeline/deploy",
        rule="r",
        rule_revision=1,
        issuer="https://ci",
        subject="repo",
        claims={"a/b": "c"},
        state=SessionState.ACTIVE,
        created_at=T0,
        expires_at=T0,
        last_at=T0,
    )
    return replace(plain, **changes)


def lease(name: str = "l", **changes: Any) -> Lease:
    plain = Lease(
        id=name,
        session="s",
        principal="pipeline/deploy",
        resource="secret/a/b",
        version=1,
        state=LeaseState.ACTIVE,
        created_at=T0,
        expires_at=T0,
    )
    return replace(plain, **changes)


def rule(name: str = "r", **changes: Any) -> TrustRule:
    plain = TrustRule(
        name=name,
        preset=Preset.GITHUB,
        issuer="https://ci",
        audience="broker",
        matchers=(
            Matcher(claim="a/b", kind=MatcherKind.EXACT, values=("é",)),
            Matcher(claim="c", kind=MatcherKind.ONE_OF, values=("x", '"')),
        ),
        pipeline="deploy",
        max_session_seconds=3600,
        single_use=True,
        ca_pem="",
        grade="A",
        findings=("one", "two"),
        created_at=T0,
    )
    return replace(plain, **changes)


LAST = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)


def sample(kind: type[R], *, full: bool = False) -> R:
    """A record of any kind; ``full``: nothing in it is left out, and its values are the widest that are allowed."""
    hints = get_type_hints(kind)
    made: R = kind(**{each.name: _value(each.name, hints[each.name], full=full) for each in fields(kind)})
    return made


def _value(name: str, hint: Any, *, full: bool) -> Any:
    if isinstance(hint, UnionType):
        return _value(name, get_args(hint)[0], full=full) if full else None
    if hint is datetime:
        return LAST if full and name not in {"created_at", "started_at"} else T0
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        nested = isinstance(inner, type) and is_dataclass(inner)
        return (sample(inner, full=True) if nested else 'é"',) if full else ()
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return list(hint)[-1 if full else 0]
    if name == "revision":
        return 1
    few, many = {str: (name, f"{name}-2"), int: (1, 2**62), bool: (False, True), bytes: (b"", bytes(range(256)))}.get(
        hint, ({}, {"a/b": 'é"\\'})
    )
    return many if full else few


def samples() -> list[Record]:
    """Two of each kind: one with as little as there can be in it, one with as much."""
    return [sample(kind, full=full) for kind in RECORDS for full in (False, True)]


ROW_KEY = bytes(range(32))


def config(url: str, folder: Path, **changes: Any) -> StoreConfig:
    return StoreConfig(**{"url": url, "journal": folder / "journal", "patience_seconds": PATIENCE, **changes})


@contextmanager
def opened(config: StoreConfig) -> Iterator[SqlStore]:
    store = SqlStore(config, ROW_KEY, now, SIGNER.genuine)
    try:
        yield store
    finally:
        store.close()


def put(store: Store, *records: Record) -> None:
    with store.write(entry()) as write:
        for record in records:
            write.add(record)


class HeadSigner:
    """An audit key, and its signatures under heads."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        spki = self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.genuine = signed_by(spki)
        self.pem = self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, head: AuditHead) -> AuditHead:
        said = head_statement(head.chain, head.sequence, head.hash, head.signed_at)
        return replace(head, signature=self._key.sign(said, ec.ECDSA(SHA256())))

    def sign_due(self, store: SqlStore) -> list[AuditHead]:
        """As the background loop does."""
        signed = [self.sign(due) for due in store.heads()]
        for each in signed:
            store.save_head(each)
        return signed


SIGNER = HeadSigner()
"""Whose heads the opened stores believe."""


class BadJournalError(Exception):
    """The journal does not hold together."""


def read_journal(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of each chain, every line checked as docs/audit-format.md says; ``BadJournalError`` if one is off."""
    files = sorted(folder.glob("*.jsonl"))
    return read_chains((path.name, path.name.split(".")[0], path.read_bytes()) for path in files)


def read_chains(files: Iterable[tuple[str, str, bytes]]) -> dict[str, list[dict[str, Any]]]:
    """As ``read_journal``, of files by name, chain and content."""
    chains: dict[str, list[dict[str, Any]]] = {}
    ends: dict[str, str] = {}
    torn: set[str] = set()
    for title, name, content in files:
        *lines, rest = content.split(b"\n")
        if name in torn:
            raise BadJournalError(f"{title}: a file after a torn line")
        torn |= {name} if rest else set()
        for place, line in enumerate(lines, 1):
            _link(line, name, chains.setdefault(name, []), ends, f"{title}:{place}")
    return chains


def _link(line: bytes, name: str, before: list[dict[str, Any]], ends: dict[str, str], where: str) -> None:
    try:
        record = json.loads(line.decode("ascii"))
        canonical = json.dumps(record, sort_keys=True, separators=(",", ":"))
        good = (record["v"], record["chain"], record["seq"]) == (1, name, len(before) + 1)
        good = good and canonical.encode() == line and record["prev"] == ends.get(name, "0" * 64)
        if record["kind"] == "head":
            good = good and _hash(before[record["head_seq"] - 1]) == record["head_hash"]
    except (ValueError, LookupError, TypeError) as fault:
        raise BadJournalError(where) from fault
    if not good:
        raise BadJournalError(where)
    before.append(record)
    ends[name] = hashlib.sha256(line).hexdigest()


def _hash(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def calls(folder: Path) -> list[str]:
    """The call ids of all entries, in order, without the first record of each chain."""
    return [
        record["call"]
        for chain in read_journal(folder).values()
        for record in chain
        if record["kind"] == "entry" and record["rpc"] != "-"
    ]


def start(
    folder: Path,
    clock: Callable[[], datetime] = now,
    file_bytes: int = 1 << 20,
    vouched: Tail | None = None,
    patience: float = PATIENCE,
) -> Journal:
    return Journal(folder, "broker", clock, file_bytes, patience=patience, vouched=vouched)


def tail(folder: Path) -> Tail:
    """How far the newest chain in the folder has come; of one that is damaged behind it, up to the damage."""
    name = max(path.name for path in folder.iterdir()).partition(".")[0]
    lines = b"".join(path.read_bytes() for path in sorted(folder.glob(f"{name}.*"))).splitlines()
    return Tail(name, len(lines), hashlib.sha256(lines[-1]).hexdigest(), 0)


def filled(folder: Path, count: int, **how: Any) -> list[bytes]:
    """A journal of that many entries; its lines, without newlines."""
    journal = start(folder, **how)
    for number in range(count):
        journal.append(entry(str(number)))
    journal.close()
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir())).splitlines()
