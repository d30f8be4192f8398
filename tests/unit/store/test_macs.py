"""The MACs of rows as they have always been: a declaration that changes one has every row of every broker refused."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from broker.core.approval import Approval, Grant
from broker.core.certified import Certified
from broker.core.findings import DriftReport, Finding
from broker.core.kinds import (
    ApprovalState,
    Drift,
    ImportState,
    OperationState,
    OperatorState,
    OwnKeyState,
    Phase,
    ScheduleState,
    SecretVersionState,
)
from broker.core.model import (
    Import,
    KeyMove,
    KeyUsed,
    Operation,
    Operator,
    PolicyDocument,
    Receipt,
    Record,
    RootKey,
    Secret,
    SecretRead,
    SecretVersion,
    Target,
    UsedToken,
)
from broker.core.own_key import OwnKey
from broker.core.records import RECORDS
from broker.core.schedule import KeySchedule
from broker.core.token_claim import TokenClaim
from broker.store.authentic import Rows
from broker.store.ledger import SUMMED
from tests.contracts.store.samples import ROW_KEY, T0, head, key, lease, rule, session, version

LAST = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
ROWS: list[Record] = [
    key(),
    key("k2", destroy_at=LAST, labels={}, exportable=False, primary=0),
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
    Secret(name="a/b", labels={"team": "x"}, latest=1, created_at=T0, updated_at=T0, expires_at=LAST),
    Secret(name="a/c", labels={}, latest=0, created_at=T0, updated_at=T0),
    SecretVersion(
        secret="a/b", number=1, state=SecretVersionState.DELETED, fields=("user", "pass"), root=1, data_key=b"\0k",
        sealed=b"", author="operator/alice", created_at=T0,
    ),
    SecretRead(secret="a/b", principal="pipeline/deploy", read_at=T0),
    RootKey(version=1, hsm_id=bytes(16), created_at=T0),
    session(),
    lease(),
    UsedToken(issuer="https://ci", jti="j", until=LAST),
    Operation(
        subject="key/a/1", number=1, kind="make-key-version", state=OperationState.RUNNING, step=0,
        memory={"exportable": "1"}, principal="operator/alice", failure="", attempts=0, created_at=T0, due_at=T0,
    ),
    Receipt(
        principal="operator/alice", request_id="t", rpc="x", digest="00", resource="a", version=1, created_at=T0,
        operation=1,
    ),
    KeyMove(
        key="a", version=1, number=1, phase=Phase.ACTIVE, at=T0, actor="operator/alice", reason="created",
    ),
    Approval(
        id="0123456789ab", digest="00", rpc="KeyService/SealKey", resource="key/a", requester="operator/alice",
        details={"name": "a"}, values_mac=None, needed=1, grants=(), state=ApprovalState.OPEN, call="", ended_by="",
        why="", created_at=T0, expires_at=LAST, due_at=LAST,
    ),
    Approval(
        id="0123456789ac", digest="00", rpc="SecretService/PutSecret", resource="secret/a", requester="operator/alice",
        details={}, values_mac=b"\0mac", needed=2, grants=(Grant(by="operator/bob", at=T0, reason="é"),),
        state=ApprovalState.USED, call="c", ended_by="", why="", created_at=T0, expires_at=LAST, due_at=LAST,
    ),
    KeySchedule(
        key="a", state=ScheduleState.ACTIVE, every=7776000, jitter=0, blackouts=("Mon-Fri 08:00-18:00 Europe/Berlin",),
        warn=86400, grace=3600, set_by="operator/alice", version=1, next_at=T0, look_at=T0, failure="", created_at=T0,
    ),
    KeySchedule(
        key="b", state=ScheduleState.ACTIVE, every=7776000, jitter=0, blackouts=(), warn=86400, grace=3600,
        set_by="operator/alice", version=1, next_at=T0, look_at=T0, failure="", created_at=T0, approvals=2,
    ),
    KeyUsed(key="a", principal="operator/alice", used_at=T0),
    Secret(
        name="a/d", labels={}, latest=1, created_at=T0, updated_at=T0, max_age=7776000, renew_at=LAST,
    ),
    DriftReport(
        place="t", checked_at=T0,
        findings=(
            Finding(
                key="a", version=1, remote_name="r", remote_version="7", drift=Drift.DELETED, detail="gone", found_at=T0
            ),
        ),
    ),
    key("k3", destroyed_at_targets=True, sealed_once_at=("t", "u")),
    Import(
        key="payments", version=1, target="v", remote_name="r", remote_version="", state=ImportState.PENDING,
        kek_thumbprint="00", blob_sha256="", failure="", started_at=T0, terms="{}",
    ),
    OwnKey(
        name="audit", version=2, state=OwnKeyState.ACTIVE, hsm_id=b"broker/123456789", public_key=b"\x30",
        certificate="", link="", handover={"former_key": "30"}, sealed=None, created_at=T0, since=T0,
    ),
    Certified(operator="alice", authority="00", until=T0),
    TokenClaim(name="token", numbers=("00" * 16, "11" * 16), quiet_until=T0, unkept=False),
]  # fmt: skip


MACS = [
    "b22f48228de42aa0e875cdf6dfaee073",
    "6b94823283327dcc1b3527912c934da1",
    "f3224fd38e628ecddda5ea44f754421b",
    "4b9b79e945fe77d0606b3e05ceaf088e",
    "bf7515187cab769a7e532eef1473fce7",
    "b3a328460d5e034918fa633195439e74",
    "fe671ceeb263bca81c4a77ed48688232",
    "983d086d85e2ee24b3f39eb333b5f75b",
    "770364c4ff9ba1824d6fc8c169ef240d",
    "752f74168b8f1b549eeb94a44a460b8c",
    "47e8a61017257489278034f9f8394f2c",
    "819a7bb5066d6d78f896e02b2a34d596",
    "0f30d03286f24dcb82490d264b15a6c7",
    "918b4b7e1fb2163eb80a35788e86d8a7",
    "3e090de366b0fcb3f73c8ed9a4eedd2b",
    "4b8c97d7629cbc4de3e4d74ad06cd1a7",
    "2edc346e986df189927e14b4d10bbcb1",
    "381d17abfb6ac8e6129fd92cced2230f",
    "0bef5e5ae03fe71b83d9821597c53de6",
    "7cd4da5413f4c142393f4ad8285ee7a9",
    "12311bd152da6a2fc6b329f86cbdc4ad",
    "50734962d210e29cf9fa243d0ace22e4",
    "a9d1a86e05416fa11b7567b211b5f1fb",
    "e91262339f7d659a5a2e437e541c7e77",
    "42244d2e96d511ffc440b702a1d69ec7",
    "a324740fde59558345e9814ad3023ad0",
    "c86c0354882984c50e61c7362e36f6ef",
    "0fd18604e0bfa690d6ac3fbd4f88fd3e",
    "225c629c119e9595704ad7d35e21ed69",
    "c99d3b0bbdffed9154d38dd63e18e85b",
    "2d7785ed544e2cd8c1a3b756081b9096",
    "4838a830f6d606edbd252fb85e865236",
    "9a9fc398dadc461f128b9794073479a1",
    "662eb0d18f99b7774b0fd14662648e0a",
    "7b665d3b5272b6f535d895fbc7f59a5f",
    "8c49c726ea0ae465f3751f731c37d54b",
    "352df37d8508aee48219b5cb4cfbab31",
    "54e2cc14e0f67392f0977d7ce4688b28",
]

SUMS = [
    "Key",
    "KeyVersion",
    "Target",
    "Import",
    "Operator",
    "PolicyDocument",
    "Receipt",
    "TrustRule",
    "Secret",
    "SecretVersion",
    "SecretRead",
    "RootKey",
    "Session",
    "Lease",
    "UsedToken",
    "Operation",
    "KeyMove",
    "Approval",
    "KeySchedule",
    "KeyUsed",
    "DriftReport",
    "OwnKey",
    "TokenClaim",
    "Certified",
]


@pytest.mark.parametrize(("record", "mac"), list(zip(ROWS, MACS, strict=True)), ids=lambda one: type(one).__name__)
def test_a_row_has_the_mac_that_it_always_had(record: Record, mac: str) -> None:
    assert Rows(ROW_KEY).mac(record).hex() == mac


def test_every_kind_is_pinned() -> None:
    assert {type(record) for record in ROWS} == set(RECORDS)


def test_the_sums_of_a_slot_are_in_the_order_that_they_always_had() -> None:
    assert [kind.__name__ for kind in SUMMED] == SUMS
