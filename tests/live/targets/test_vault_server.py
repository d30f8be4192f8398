"""The test server itself: it seals, unseals, stops, starts, and the broker's token is the small one."""

from __future__ import annotations

import requests

from tests.servers.openbao import OpenBao


def test_seal_stop_and_start_keep_the_keys(openbao_own: OpenBao) -> None:
    before = openbao_own.request("GET", "transit/wrapping_key")["data"]
    openbao_own.seal()
    assert openbao_own.session.get(f"{openbao_own.address}/v1/transit/wrapping_key", timeout=200).status_code == 503
    openbao_own.unseal()
    openbao_own.stop()
    openbao_own.start()
    assert openbao_own.request("GET", "transit/wrapping_key")["data"] == before


def test_the_brokers_token_may_not_delete_export_or_rotate(openbao: OpenBao) -> None:
    openbao.request("POST", "transit/keys/guarded", {"type": "aes256-gcm96", "exportable": True})
    headers = {"X-Vault-Token": openbao.broker_token}
    for method, path in [
        ("DELETE", "keys/guarded"),
        ("GET", "export/encryption-key/guarded"),
        ("GET", "backup/guarded"),
        ("POST", "keys/guarded/rotate"),
        ("POST", "keys/another"),
    ]:
        url = f"{openbao.address}/v1/transit/{path}"
        answer = requests.request(method, url, headers=headers, verify=str(openbao.ca_file), timeout=200, json={})
        assert answer.status_code == 403, path
    for flag in ("deletion_allowed", "exportable", "allow_plaintext_backup", "auto_rotate_period"):
        body = {flag: "1h" if flag == "auto_rotate_period" else True}
        url = f"{openbao.address}/v1/transit/keys/guarded/config"
        answer = requests.post(url, headers=headers, verify=str(openbao.ca_file), timeout=200, json=body)
        assert answer.status_code == 403, flag
