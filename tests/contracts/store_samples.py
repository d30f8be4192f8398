"""Records and audit entries for the store's tests, an opened store, and a second reader of the journal's format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.core.audit.heads import signed_by
from broker.core.entries import AuditEntry, Phase, head_statement
from broker.core.kinds import (
    ImportState,
    KeyState,
    KeyType,
    KeyUsage,
    LeaseState,
    MatcherKind,
    OperationState,
    OperatorState,
    Preset,
    SecretVersionState,
    SessionState,
    VersionState,
)
from broker.core.model import (
    AuditHead,
    Import,
    Key,
    KeyVersion,
    Lease,
    Matcher,
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
from broker.store.chain import Tail
from broker.store.config import StoreConfig
from broker.store.journal import Journal
from broker.store.sql import SqlStore

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


def samples() -> list[Record]:
    """One of each kind, every optional field both set and unset, and the widest values that are allowed."""
    last = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    return [
        key(),
        key("k2", destroy_at=last, labels={}, exportable=False, primary=0),
        version(),
        version("k2", 2**62, public_key=None, sealed=True, hsm_id=b""),
        Target(name="t", kind="vault", settings={"a": "é"}, kek_id="k", kek_thumbprint="00", created_at=T0),
        *(
            Import(
                key="payments", version=1, target=target, remote_name="r", remote_version="", state=ImportState.PENDING,
                kek_thumbprint="00", blob_sha256="", failure="", started_at=T0, proven_at=proven,
            )
            for target, proven in (("t", None), ("u", T0))
        ),
        Operator(name="alice", groups=("a", "b"), state=OperatorState.ENABLED, not_before=T0, created_at=T0),
        Operator(name="bob", groups=(), state=OperatorState.REMOVED, not_before=T0, created_at=T0),
        PolicyDocument(version=1, text="permit(principal, action, resource);\n" * 1000, author="a", created_at=T0),
        Receipt(
            principal="operator/alice", request_id="r", rpc="x", digest="00", resource="key/a", version=0, created_at=T0
        ),
        Receipt(
            principal="operator/alice", request_id="s", rpc="x", digest="00", resource="a/b", version=1, created_at=T0,
            values_mac=b"\0mac",
        ),
        head(),
        rule(),
        rule("none", matchers=(), findings=(), single_use=False),
        Secret(name="a/b", labels={"team": "x"}, latest=1, created_at=T0, updated_at=T0, expires_at=last),
        Secret(name="a/c", labels={}, latest=0, created_at=T0, updated_at=T0),
        SecretVersion(
            secret="a/b", number=1, state=SecretVersionState.DELETED, fields=("user", "pass"), root=1, data_key=b"\0k",
            sealed=b"", author="operator/alice", created_at=T0,
        ),
        SecretRead(secret="a/b", principal="pipeline/deploy", read_at=T0),
        RootKey(version=1, hsm_id=bytes(16), created_at=T0),
        session(),
        lease(),
        UsedToken(issuer="https://ci", jti="j", until=last),
        Operation(
            subject="key/a/1", number=1, kind="make-key-version", state=OperationState.RUNNING, step=0,
            memory={"exportable": "1"}, principal="operator/alice", failure="", attempts=0, created_at=T0, due_at=T0,
        ),
        Receipt(
            principal="operator/alice", request_id="t", rpc="x", digest="00", resource="a", version=1, created_at=T0,
            operation=1,
        ),
    ]  # fmt: skip


ROW_KEY = bytes(range(32))


def config(url: str, folder: Path, **changes: Any) -> StoreConfig:
    return StoreConfig(url=url, journal=folder / "journal", **changes)


@contextmanager
def opened(config: StoreConfig) -> Iterator[SqlStore]:
    store = SqlStore(config, ROW_KEY, now, SIGNER.genuine)
    try:
        yield store
    finally:
        store.close()


def put(store: SqlStore, *records: Record) -> None:
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
    chains: dict[str, list[dict[str, Any]]] = {}
    ends: dict[str, str] = {}
    torn: set[str] = set()
    for path in sorted(folder.glob("*.jsonl")):
        *lines, rest = path.read_bytes().split(b"\n")
        name = path.name.split(".")[0]
        if name in torn:
            raise BadJournalError(f"{path.name}: a file after a torn line")
        torn |= {name} if rest else set()
        for place, line in enumerate(lines, 1):
            _link(line, name, chains.setdefault(name, []), ends, f"{path.name}:{place}")
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
    folder: Path, clock: Callable[[], datetime] = now, file_bytes: int = 1 << 20, vouched: Tail | None = None
) -> Journal:
    return Journal(folder, "broker", clock, file_bytes, vouched=vouched)


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
