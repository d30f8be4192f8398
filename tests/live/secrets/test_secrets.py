"""What the running broker never gives away: its own keys, plaintexts, credentials, and the inside of its errors."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from broker import own_keys
from tests.servers.live import METHODS, Client, Live
from tests.servers.openbao import OpenBao
from tests.servers.refusals import Refused

EC_P256, AES_256 = 4, 10
SIGN, ENCRYPT = 1, 2


def fresh(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(5)}"


@pytest.fixture(scope="module")
def admin(live: Live) -> Client:
    return live.client()


def test_HS_17_the_brokers_own_keys_are_reached_by_no_rpc(admin: Client) -> None:
    listed = {one.name for one in admin.everything("ListKeys", "keys")}
    for own in own_keys.INTERNAL_KEYS.values():
        for name in (own.decode(), own.hex(), own.decode().replace("/", "-"), own.decode().partition("/")[2]):
            assert name not in listed
            for rpc in ("GetKey", "GetPublicKey", "Sign", "ImportKey", "RotateKey", "ScheduleKeyDestruction"):
                given: dict[str, Any] = {"name": name}
                given |= {"input": {"message": b"m"}} if rpc == "Sign" else {}
                given |= {"target": "bao"} if rpc == "ImportKey" else {}
                assert admin.refusal(rpc, **given).reason in {"NAME_INVALID", "KEY_NOT_FOUND"}
    assert admin.ask("SignAuditHead").heads  # and they still do their work


def test_HS_11_no_rpc_signs_what_the_caller_chose_with_a_key_of_the_broker(live: Live, admin: Client) -> None:
    """Signatures of the audit key and the CAs are over what the broker composes; user keys sign nothing of theirs."""
    takes_bytes = {
        rpc
        for rpc, method in METHODS.items()
        for field in method.input_type.fields
        if field.type == field.TYPE_BYTES or (field.message_type and field.message_type.name == "SignInput")
    }
    assert takes_bytes == {"Sign", "BatchSign", "Verify", "Encrypt", "Decrypt"}  # each by the name of a user's key
    own = (live.folder / "certificates" / "audit.pem").read_text()
    name = fresh("user")
    admin.ask("CreateKey", name=name, type=EC_P256, usage=SIGN)
    assert admin.ask("GetPublicKey", name=name).pem != own
    with pytest.raises(Refused):
        admin.ask("Decrypt", name=name, ciphertext=b"c" * 64)
    with pytest.raises(Refused):
        admin.ask("Encrypt", name=name, plaintext=b"p")


CANARY = b"canary-7c1f-plaintext"


def test_ST_01_no_plaintext_and_no_credential_is_anywhere_in_the_folder(
    live: Live, admin: Client, openbao: OpenBao
) -> None:
    name, sign = fresh("canary"), fresh("canary")
    admin.ask("CreateKey", name=name, type=AES_256, usage=ENCRYPT, exportable=True)
    admin.ask("CreateKey", name=sign, type=EC_P256, usage=SIGN, exportable=True)
    sealed = admin.ask("Encrypt", name=name, plaintext=CANARY, aad=CANARY + b"aad").ciphertext
    assert admin.ask("Decrypt", name=name, ciphertext=sealed, aad=CANARY + b"aad").plaintext == CANARY
    assert admin.ask("Sign", name=sign, input={"message": CANARY}).signature
    admin.ask("ImportKey", name=name, target="bao")
    admin.ask("ImportKey", name=sign, target="bao")
    found = live.holding(CANARY, CANARY.hex().encode(), live.pin.encode(), openbao.broker_token.encode())
    assert found == []


def hostile(admin: Client, text: str) -> Iterator[Refused]:
    """Every text field of every RPC filled with ``text``, alone; the refusals. A name may be said back."""
    names = {"name", "target"}
    for rpc, method in sorted(METHODS.items()):
        for field in method.input_type.fields:
            if field.type != field.TYPE_STRING or field.is_repeated or field.containing_oneof or field.name in names:
                continue
            try:
                admin.ask(rpc, **{field.name: text})  # a few are sound: the name of a chain that is not there
            except Refused as error:
                yield error


def test_CL_03_a_hundred_forced_errors_give_nothing_away(live: Live, admin: Client, openbao: OpenBao) -> None:
    name = fresh("errors")
    admin.ask("CreateKey", name=name, type=AES_256, usage=ENCRYPT)
    sealed = bytearray(admin.ask("Encrypt", name=name, plaintext=CANARY, aad=CANARY).ciphertext)
    broken = [bytes(sealed[:length]) for length in range(1, len(sealed))]
    for place in range(5, len(sealed)):  # a flipped bit anywhere in nonce, ciphertext and tag
        sealed[place] ^= 1
        broken.append(bytes(sealed))
    errors = [admin.refusal("Decrypt", name=name, ciphertext=one, aad=CANARY) for one in broken]
    for text in (CANARY.decode(), f"{CANARY.decode()}\0", f"../{CANARY.decode().upper()}"):
        errors += hostile(admin, text)
    assert len(errors) >= 100
    assert "INTERNAL" not in {error.code for error in errors}
    everywhere = "\n".join([*(f"{error.sentence} {error.reason}" for error in errors), live.said])
    for secret in (CANARY.decode(), CANARY.decode().upper(), live.pin, openbao.broker_token, str(live.folder)):
        assert secret not in everywhere
    assert "Traceback" not in everywhere
