"""One sound request of every RPC that an operator can call, in an order in which all succeed."""

from __future__ import annotations

import json
import secrets
from collections.abc import Generator
from typing import Any

from broker import setup
from tests.servers.live import POLICY, Client, Live, vault_settings
from tests.servers.openbao import OpenBao

EC_P256, AES_256 = 4, 10
SIGN, ENCRYPT = 1, 2
KEEP = 1
Story = Generator[tuple[str, dict[str, Any]], Any, None]


def fresh(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(5)}"


def csr() -> str:
    return setup.make_request()[1].decode()


def everything(admin: Client, live: Live, bao: OpenBao) -> list[str]:
    """All that a call without effect must leave as it is: the broker's lists, the target's keys, the token's objects.

    Not what the background loop writes down by itself: who read a secret, or used a key, last comes seconds after it.
    """
    lists = (
        ("ListTargets", "targets"),
        ("ListImports", "imports"),
        ("ListOperators", "operators"),
        ("ListTrustRules", "rules"),
    )
    keys_listed = admin.everything("ListKeys", "keys")
    for key in keys_listed:
        key.ClearField("last_user")
        key.ClearField("last_use_time")
    secrets_listed = admin.everything("ListSecrets", "secrets")
    for secret in secrets_listed:
        secret.ClearField("last_reader")
        secret.ClearField("last_read_time")
    return [
        *(str(admin.everything(*one)) for one in lists),
        str(keys_listed),
        str(secrets_listed),
        str(admin.ask("GetPolicy").policy.version),
        json.dumps((bao.request("GET", f"{bao.mount}/keys?list=true") or {}).get("data")),
        str(sorted(file.name for file in (live.folder / "softhsm").rglob("*.object"))),
    ]


def story(bao: OpenBao, version: int) -> Story:
    """Requests that all succeed in this order for an admin, at least one of every RPC; answers are sent back in.

    ``version``: of the policy in force.
    """
    key = fresh("k")
    yield "WhoAmI", {}
    yield "GetHsm", {}
    yield from _keys(key)
    yield from _places(bao, key)
    yield from _people()
    yield from _secrets()
    yield from _trust()
    yield "ListApprovals", {"page_size": 5}
    yield "GetPolicy", {}
    yield "SetPolicy", {"text": POLICY, "expected_version": version}
    yield "ExplainPolicy", {"operator": "admin", "action": "Sign", "key": key}
    yield "GetAuditState", {}
    yield "SignAuditHead", {}
    yield "ListAuditHeads", {"page_size": 5}
    yield "ListAuthorities", {}
    yield "RotateAuthority", {"name": "page"}
    yield "RetireAuthority", {"name": "page"}


def _keys(key: str) -> Story:
    aes = fresh("aes")
    message = {"message": b"pay 10 to bob"}
    yield "CreateKey", {"name": key, "type": EC_P256, "usage": SIGN, "exportable": True}
    yield "CreateKey", {"name": aes, "type": AES_256, "usage": ENCRYPT}
    yield "GetKey", {"name": key, "ask_token": True}
    yield "SetKeySchedule", {"name": key, "every": {"seconds": 90 * 86_400}}
    yield "ListKeys", {"page_size": 5}
    yield "GetPublicKey", {"name": key}
    signed = yield "Sign", {"name": key, "input": message}
    yield "BatchSign", {"name": key, "inputs": [message, message]}
    yield "Verify", {"name": key, "input": message, "signature": signed.signature}
    sealed = yield "Encrypt", {"name": aes, "plaintext": b"canary-plaintext-77"}
    yield "Decrypt", {"name": aes, "ciphertext": sealed.ciphertext}
    yield "RotateKey", {"name": key}
    yield "ListKeyVersions", {"name": key}
    yield from _operations(key)
    yield from _life(fresh("life"))
    yield "DisableKey", {"name": aes}
    yield "EnableKey", {"name": aes}
    yield "ScheduleKeyDestruction", {"name": aes}
    yield "CancelKeyDestruction", {"name": aes}
    yield "SettleKeyVersion", {"name": key, "version": 1, "settlement": KEEP}


def _life(key: str) -> Story:
    yield "CreateKey", {"name": key, "type": EC_P256, "usage": SIGN, "exportable": True}
    yield "RotateKey", {"name": key, "everywhere": True}
    yield "PrepareKeyVersion", {"name": key}
    yield "ActivateKeyVersion", {"name": key, "version": 3}
    yield "RetireKeyVersion", {"name": key, "version": 1}
    yield "CompromiseKeyVersion", {"name": key, "version": 2, "reason": "A laptop was stolen."}
    yield "ListKeyMoves", {"name": key}


def _operations(key: str) -> Story:
    found = yield "ListOperations", {"subject": f"key/{key}", "page_size": 5}
    name = found.operations[0].name if found.operations else f"key/{key}/1/1"
    yield "GetOperation", {"name": name}
    yield "WaitOperation", {"name": name}
    yield "RetryOperation", {"name": name}


def _places(bao: OpenBao, key: str) -> Story:
    target = fresh("t")
    made = yield "CreateTarget", {"name": target, "vault": vault_settings(bao)}
    yield "GetTarget", {"name": target}
    yield "ListTargets", {"page_size": 5}
    yield "CheckTarget", {"name": target}
    yield "RepinTarget", {"name": target, "expected_kek_thumbprint": made.target.kek_thumbprint}
    yield "DeleteTarget", {"name": target}
    yield "ImportKey", {"name": key, "target": "bao"}
    yield "ProveImport", {"name": key, "target": "bao"}
    yield "ListImports", {"name": key}
    yield "CheckDrift", {"target": "bao"}
    yield "ListDrift", {}
    yield from _carried(bao)
    yield "SealKey", {"name": key}


def _carried(bao: OpenBao) -> Story:
    key = fresh("c")
    yield "CreateKey", {"name": key, "type": EC_P256, "usage": SIGN, "exportable": True}
    made = yield "ExportKey", {"name": key, "target": "bao"}
    if made.transfer_file:
        bao.request("POST", f"{bao.mount}/keys/{key}/import", json.loads(made.transfer_file))
    yield "ConfirmImport", {"name": key, "target": "bao"}


def _people() -> Story:
    who = fresh("o")
    yield "AddOperator", {"name": who, "groups": ["nothing"], "csr_pem": csr()}
    yield "ListOperators", {"page_size": 5}
    yield "SetOperatorGroups", {"name": who, "groups": ["auditors"]}
    yield "IssueCertificate", {"name": who, "csr_pem": csr()}
    yield "RenewCertificate", {"csr_pem": csr()}
    yield "RevokeCertificates", {"name": who}
    yield "RemoveOperator", {"name": who}


def _secrets() -> Story:
    name = f"live/{fresh('s')}"
    yield "PutSecret", {"name": name, "fields": {"password": b"canary-field-41"}}
    yield "PatchSecret", {"name": name, "fields": {"user": b"canary-field-42"}}
    yield "GetSecret", {"name": name}
    yield "ListSecrets", {"prefix": "live", "page_size": 5}
    yield "FetchSecrets", {"references": [f"{name}#password"]}
    yield "SetSecretMaxAge", {"name": name, "max_age": {"seconds": 90 * 86_400}}
    yield "ListSecretVersions", {"name": name}
    yield "DeleteSecretVersions", {"name": name, "versions": [1]}
    yield "UndeleteSecretVersions", {"name": name, "versions": [1]}
    yield "DestroySecretVersions", {"name": name, "versions": [1]}
    yield "GetRootKey", {}
    yield "RotateRootKey", {}
    yield "SettleRootKey", {"version": 1, "settlement": KEEP}
    yield "ListSessions", {"page_size": 5}
    yield "RevokeSessions", {"principal": "pipeline/nobody"}
    yield "ListLeases", {"page_size": 5}
    yield "RevokeLeases", {"principal": "pipeline/nobody"}


def _trust() -> Story:
    name = fresh("r")
    rule = {
        "name": name,
        "preset": 1,
        "issuer": "https://issuer.example",
        "audience": "broker",
        "matchers": [{"claim": "sub", "exact": "0b7f4b1e-4f0c-4a1c-9a53-6d3a0b1f6f10"}],
        "pipeline": name,
        "max_session": {"seconds": 900},
        "single_use": True,
    }
    made = yield "CreateTrustRule", {"rule": rule}
    yield "GetTrustRule", {"name": name}
    yield "ListTrustRules", {"page_size": 5}
    yield "TestTrustRule", {"name": name, "identity_token": "canary.not.one"}
    changed = rule | {"max_session": {"seconds": 600}, "revision": made.rule.revision}
    yield "UpdateTrustRule", {"rule": changed}
    yield "DeleteTrustRule", {"name": name}
