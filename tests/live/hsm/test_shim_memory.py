"""BY-11: where the key's bytes are not, after a whole import in a whole broker."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from secrets import token_hex

import pytest

from broker.hsm.config import HsmConfig
from tests.servers.live import Live
from tests.servers.live_azure import AzureLive
from tests.servers.memory import forms, holds, plaintexts
from tests.servers.shim import put_shim_before
from tests.servers.softhsm import alone

RSA_2048, EC_P256, AES_256 = 1, 4, 10
SIGN, ENCRYPT = 1, 2


def test_BY_11_neither_memory_nor_files_of_the_broker_hold_an_imported_key(live_own: Live, tmp_path: Path) -> None:
    live_own.terminate()
    shim = put_shim_before(live_own.config, tmp_path)
    live_own.start()
    import_three(live_own, "bao", "k")
    assert shim.calls("C_WrapKey"), "the imports went through the shim"
    assert_held_nowhere(live_own)


def test_BY_11_nor_does_one_that_has_imported_into_azure(azure_live: AzureLive) -> None:
    import_three(azure_live.broker, "hsm", f"m-{token_hex(4)}")
    assert_held_nowhere(azure_live.broker)


def import_three(live: Live, target: str, name: str) -> None:
    with live.client() as admin:
        for at, (kind, usage) in enumerate(((EC_P256, SIGN), (RSA_2048, SIGN), (AES_256, ENCRYPT))):
            admin.ask("CreateKey", name=f"{name}-{at}", type=kind, usage=usage, exportable=True)
            admin.ask("ImportKey", name=f"{name}-{at}", target=target)


def assert_held_nowhere(live: Live) -> None:
    """No exportable key of the token is in the running broker's memory or in its files."""
    assert live.process is not None
    config = HsmConfig.model_validate(tomllib.loads(live.config.read_text())["hsm"])
    secrets = [forms(plaintext) for plaintext in alone(plaintexts, config)]
    assert len(secrets) >= 3
    everything = {f"{at} {name}": form for at, ways in enumerate(secrets) for name, form in ways.items()}
    if os.geteuid():
        with pytest.raises(PermissionError):  # the broker lets nobody but root look
            holds(live.process.pid, everything)
    else:
        assert holds(live.process.pid, everything | {"a control": b"MainThread"}) == ["a control"]
    assert live.holding(*everything.values()) == []


HOLDER = """
import sys
from cryptography.hazmat.primitives.serialization import load_der_private_key
der = bytes.fromhex(sys.stdin.readline())
key = load_der_private_key(der, None)
print("held", flush=True)
sys.stdin.readline()
"""


def test_the_scan_finds_a_key_that_is_there(live_key: bytes) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(live_key.hex().encode() + b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"held\n"
        found = holds(process.pid, forms(live_key))
        process.stdin.write(b"\n")
    assert {"end of DER", "p", "q", "p in limbs"} <= set(found)


@pytest.fixture
def live_key() -> bytes:
    """An RSA key in DER."""
    return subprocess.run(
        ["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-outform", "DER"],
        capture_output=True,
        check=True,
    ).stdout
