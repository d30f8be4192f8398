"""What a database's administrator gets out of a running broker without a certificate: refusals, each recorded.

On SQLite or PostgreSQL, as the run's seed chooses for each attack; `make soak` is on both. The attacks on the store
alone, table by table and column by column, are in ``tests.live.store.test_dba``.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker.config import load
from broker.own_keys import AUDIT_KEY, OPERATOR_CA, SERVER_CA
from tests.servers.dba import Dba
from tests.servers.live import Client, Live, free_address, within
from tests.servers.postgres import Postgres
from tests.servers.refusals import Refused

EC_P256, AES_256, SIGN, ENCRYPT = 4, 10, 1, 2
HOUR = 3_600_000_000
TOLD_SECONDS = 60


@dataclass
class Scene:
    live: Live
    dba: Dba
    admin: Client
    bob: Client


@pytest.fixture(params=["sqlite", "postgresql"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    """A broker with a key, a secret of two versions, and an operator who was removed."""
    live = Live(tmp_path / "broker")
    database = ""
    addresses = ["--operators-address", free_address(), "--pipelines-address", free_address()]
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        database = server.create_database()
        addresses += ["--database", server.url(database)]
    made = live.command("init", str(live.folder), *addresses)
    assert made.returncode == 0, made.stderr
    try:
        live.start()
        admin = live.client()
        admin.ask("CreateKey", name="payments", type=EC_P256, usage=SIGN)
        admin.ask("PutSecret", name="shop/db", fields={"password": b"old"})
        admin.ask("PutSecret", name="shop/db", fields={"password": b"new"})
        bob = live.operator(admin, "bob", "admins")
        yield Scene(live, Dba(load(live.config).store), admin, bob)
        live.verify()
    finally:
        live.close()
        if database:
            server.drop_database(database)


def told(scene: Scene, resource: str) -> bool:
    """Whether the audit has it that somebody changed this row."""
    return any(
        one.get("resource") == resource and one["reason"] == "ROW_FORGED"
        for one in scene.live.records()
        if one["kind"] == "entry"
    )


def all_told(scene: Scene, *resources: str) -> None:
    within(TOLD_SECONDS, lambda: all(told(scene, resource) for resource in resources))
    assert "changed by somebody else" in scene.live.said


def micros(hours: float) -> int:
    return int(time.time() * 1e6) - int(hours * HOUR)


@pytest.mark.sampled(1)
def test_K_03_HS_17_rows_that_name_the_brokers_own_keys_command_nothing(scene: Scene) -> None:
    """Invented by who knows the format, with and without the MAC of another row; nothing is destroyed or signed."""
    (good,) = scene.dba.rows("keys")
    (version,) = scene.dba.rows("key_versions")
    (root,) = scene.dba.rows("root_keys")
    own = {"audit": AUDIT_KEY, "ca": OPERATOR_CA, "tls": SERVER_CA, "root": bytes(root["hsm_id"])}
    for name, hsm_id in own.items():
        dying = {"state": "destroy-scheduled", "destroy_at": micros(1)}
        scene.dba.insert("keys", {**good, "name": f"dying-{name}", **dying, "owner": "operator/bob"})
        scene.dba.insert("key_versions", {**version, "key": f"dying-{name}", "hsm_id": hsm_id})
        scene.dba.insert("keys", {**good, "name": f"pending-{name}", "state": "pending", "owner": "operator/bob"})
        pending = {"key": f"pending-{name}", "state": "pending", "created_at": micros(1), "hsm_id": hsm_id}
        scene.dba.insert("key_versions", {**version, **pending})
        scene.dba.insert("keys", {**good, "name": f"own-{name}", "owner": "operator/bob"})
        scene.dba.insert("key_versions", {**version, "key": f"own-{name}", "hsm_id": hsm_id})
    scene.dba.run("UPDATE key_versions SET hsm_id = ? WHERE key = 'payments'", [OPERATOR_CA])
    for name in own:
        assert scene.bob.refusal("Sign", name=f"own-{name}", input={"message": b"x"}).reason == "ROW_FORGED"
    assert scene.bob.refusal("Sign", name="payments", input={"message": b"x"}).reason == "ROW_FORGED"
    assert scene.live.terminate() == 0
    scene.live.start()  # the first round of the background work is at once
    scene.admin = scene.live.client()
    all_told(scene, *(f"row/keys/dying-{name}" for name in own), "row/key_versions/payments/1")
    scene.dba.run("UPDATE key_versions SET hsm_id = ? WHERE key = 'payments'", [version["hsm_id"]])
    assert scene.admin.ask("Sign", name="payments", input={"message": b"x"}).signature
    assert scene.admin.ask("PutSecret", name="shop/new", fields={"a": b"b"}).secret  # the root key
    scene.live.operator(scene.admin, "carol")  # the operators' CA
    assert scene.admin.ask("SignAuditHead").heads  # the audit key


@pytest.mark.sampled(1)
def test_S_01_groups_policies_and_revived_operators_permit_nothing(scene: Scene) -> None:
    (bob,) = [row for row in scene.dba.rows("operators") if row["name"] == "bob"]
    (policy,) = scene.dba.rows("policy_documents")
    scene.admin.ask("RemoveOperator", name="bob")
    (removed,) = [row for row in scene.dba.rows("operators") if row["name"] == "bob"]
    scene.dba.put("operators", bob)
    assert scene.bob.refusal("ListKeys").code in {"UNAUTHENTICATED", "FAILED_PRECONDITION", "PERMISSION_DENIED"}
    all_told(scene, "row/operators/bob")
    scene.dba.put("operators", {**removed, "state": "enabled", "groups": json.dumps(["admins"])})
    assert scene.bob.refusal("ListKeys").code in {"UNAUTHENTICATED", "FAILED_PRECONDITION", "PERMISSION_DENIED"}
    scene.dba.put("operators", removed)
    dora = scene.live.operator(scene.admin, "dora")
    everybody = "permit (principal, action, resource);"
    scene.dba.insert("policy_documents", {**policy, "version": 2, "text": everybody})
    all_told(scene, "row/policy_documents/2")
    assert dora.refusal("CreateKey", name="evil", type=EC_P256, usage=SIGN).code in {
        "PERMISSION_DENIED",
        "FAILED_PRECONDITION",  # with several processes a later policy that nobody vouches for stops them all
    }
    scene.dba.run("DELETE FROM policy_documents WHERE version = 2")
    scene.dba.run("UPDATE operators SET groups = ? WHERE name = 'dora'", [json.dumps(["admins"])])
    assert dora.refusal("CreateKey", name="evil", type=EC_P256, usage=SIGN).code in {
        "UNAUTHENTICATED",
        "FAILED_PRECONDITION",
    }


@pytest.mark.sampled(1)
def test_P_28_an_old_value_is_not_served_by_putting_the_secrets_row_back(scene: Scene) -> None:
    scene.admin.ask("PutSecret", name="shop/db", fields={"password": b"newest"})
    (row,) = scene.dba.rows("secrets")
    scene.dba.put("secrets", {**row, "latest": 1})
    assert scene.admin.refusal("GetSecret", name="shop/db").reason == "ROW_FORGED"
    scene.dba.put("secrets", row)
    assert scene.admin.ask("GetSecret", name="shop/db").secret.name == "shop/db"
    scene.admin.ask("PutSecret", name="shop/db", fields={"password": b"newer still"})
    scene.dba.put("secrets", row)  # genuine, and older
    assert scene.admin.refusal("GetSecret", name="shop/db").reason == "ROW_FORGED"
    all_told(scene, "row/secrets/shop/db")


@pytest.mark.sampled(1)
def test_S_01_a_destruction_that_was_cancelled_and_put_back_destroys_nothing(scene: Scene) -> None:
    """Before a start, by somebody who has kept the row: the journal knows that it is not the newest."""
    scene.admin.ask("ScheduleKeyDestruction", name="payments", delay={"seconds": 86400})
    (dying,) = scene.dba.rows("keys")
    scene.admin.ask("CancelKeyDestruction", name="payments")
    scene.admin.ask("EnableKey", name="payments")
    (saved,) = scene.dba.rows("keys")
    assert scene.live.terminate() == 0
    scene.dba.put("keys", dying)
    scene.live.start()
    scene.admin = scene.live.client()
    all_told(scene, "row/keys/payments")
    assert scene.admin.refusal("GetKey", name="payments").reason == "ROW_FORGED"
    done = scene.live.command("check", "--config", str(scene.live.config), "--format", "json")
    found = {one["name"]: one for one in json.loads(done.stdout)}["store"]
    if "postgresql" in str(load(scene.live.config).store.url):
        assert "keys/payments (put back)" in found["detail"]
    scene.dba.put("keys", saved)
    within(TOLD_SECONDS, lambda: not isinstance(_try(scene, "payments"), Refused))


def _try(scene: Scene, name: str) -> object:
    try:
        return scene.admin.ask("Sign", name=name, input={"message": secrets.token_bytes(8)})
    except Refused as error:
        return error
