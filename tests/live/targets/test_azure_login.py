"""Every credential that azure-identity knows for us, against a login server on this host."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from broker.targets import https
from broker.targets.azure_key_vault.clouds import Place
from broker.targets.azure_key_vault.credential import PinnedCredential
from broker.targets.azure_key_vault.settings import AzureKeyVaultSettings
from tests.fakes.refusals import refused
from tests.servers.openbao import self_signed

TENANT, CLIENT = "11111111-2222-3333-4444-555555555555", "66666666-7777-8888-9999-000000000000"
VAULT = "https://team-keys.vault.azure.net"
HOST = "team-keys.vault.azure.net:443"
SCOPE = "https://vault.azure.net/.default"


class Login(ThreadingHTTPServer):
    """Gives tokens for ``secret`` or any assertion; keeps what it was asked."""

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None, ca_pem: str = "") -> None:
        self.ca_pem = ca_pem
        super().__init__(("127.0.0.1", 0), _Talk)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self.secret = "canary-secret"
        self.asked: list[dict[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.answer: tuple[int, dict[str, Any]] | None = None


class _Talk(BaseHTTPRequestHandler):
    server: Login

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path.endswith("/.well-known/openid-configuration"):
            there = f"https://{self.server.host}/{TENANT}"
            self._say(200, {
                "issuer": f"{there}/v2.0", "token_endpoint": f"{there}/oauth2/v2.0/token",
                "authorization_endpoint": f"{there}/oauth2/v2.0/authorize",
            })  # fmt: skip
            return
        self.server.headers.append(dict(self.headers.items()))
        self._token({name: values[0] for name, values in parse_qs(parts.query).items()})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self._token({name: values[0] for name, values in parse_qs(body).items()})

    def _token(self, asked: dict[str, str]) -> None:
        self.server.asked.append(asked)
        if self.server.answer is not None:
            self._say(*self.server.answer)
        elif asked.get("client_secret", self.server.secret) != self.server.secret:
            said = "AADSTS7000215: Invalid client secret provided: canary-secret."
            self._say(401, {"error": "invalid_client", "error_description": said})
        else:
            self._say(200, {
                "access_token": "canary-token", "token_type": "Bearer", "expires_in": 3600, "expires_on": "9999999999",
                "resource": "https://vault.azure.net",
            })  # fmt: skip

    def _say(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def serving(login: Login) -> Iterator[Login]:
    thread = threading.Thread(target=login.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield login
    login.shutdown()
    thread.join()
    login.server_close()


@pytest.fixture
def login(tmp_path: Path) -> Iterator[Login]:
    certificate, key = self_signed(tmp_path / "login")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    yield from serving(Login(context, certificate.read_text()))


class Desk:
    """Credentials for one vault, whose files lie in a folder of the test's."""

    def __init__(self, login: Login, folder: Path) -> None:
        self.login, self.folder = login, folder
        (folder / HOST).mkdir(exist_ok=True)
        self.place = Place(
            url=VAULT, host=HOST, tier="premium", resource="https://vault.azure.net", logins=(login.host,),
            tenant=TENANT,
        )  # fmt: skip

    def put(self, content: bytes, mode: int = 0o600) -> None:
        file = self.folder / HOST / "login"
        file.touch()
        file.chmod(mode)
        file.write_bytes(content)

    def credential(self, kind: str, **changes: str) -> PinnedCredential:
        given = {"tenant_id": TENANT, "client_id": CLIENT, **changes}
        settings = AzureKeyVaultSettings.model_validate({"vault_url": VAULT, "kek": "kek", "credential": kind, **given})
        return PinnedCredential(settings, self.place, self.folder, self.login.ca_pem)


@pytest.fixture
def desk(login: Login, tmp_path: Path) -> Desk:
    return Desk(login, tmp_path)


def asked(credential: PinnedCredential, scope: str = SCOPE, tenant: str = TENANT) -> str:
    with https.together():
        return str(credential.get_token(scope, tenant_id=tenant, enable_cae=True).token)


def denied(credential: PinnedCredential, reason: str, **options: str) -> str:
    return refused(lambda: asked(credential, **options), reason=reason).message


def test_a_client_secret_comes_from_its_file_and_a_new_one_is_taken_up(desk: Desk) -> None:
    desk.put(b"canary-secret\n")
    credential = desk.credential("client-secret", file="login")
    assert asked(credential) == asked(credential) == "canary-token"
    (sent,) = desk.login.asked  # the second one came from memory
    assert (sent["client_id"], sent["client_secret"], sent["scope"].split()[0]) == (CLIENT, "canary-secret", SCOPE)
    assert "canary" not in repr(credential)
    desk.login.secret = "canary-renewed"
    desk.put(b"canary-renewed")
    assert asked(credential) == "canary-token"
    assert len(desk.login.asked) == 2


def test_a_secret_that_others_can_read_or_that_is_wrong_is_refused(desk: Desk) -> None:
    desk.put(b"canary-secret", 0o640)
    assert "chmod 600" in denied(desk.credential("client-secret", file="login"), "TARGET_CREDENTIAL_UNUSABLE")
    desk.put(b"canary-wrong")
    message = denied(desk.credential("client-secret", file="login"), "TARGET_CREDENTIAL_UNUSABLE")
    assert "AADSTS7000215" in message


def test_a_client_certificate_signs_its_assertion(desk: Desk, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import rsa  # noqa: PLC0415 - one test's need
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415 - as above
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    certificate, _ = self_signed(tmp_path / "client")
    key = rsa.generate_private_key(65537, 2048)
    desk.put(certificate.read_bytes() + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    assert asked(desk.credential("client-certificate", file="login")) == "canary-token"
    (sent,) = desk.login.asked
    claims = json.loads(base64.urlsafe_b64decode(sent["client_assertion"].split(".")[1] + "=="))
    assert (claims["iss"], claims["aud"]) == (CLIENT, f"https://{desk.login.host}/{TENANT}/oauth2/v2.0/token")
    desk.put(b"canary: no certificate")
    denied(desk.credential("client-certificate", file="login"), "TARGET_CREDENTIAL_UNUSABLE")


def test_a_federated_token_is_shown_from_a_file_of_ours_or_where_kubernetes_puts_it(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.put(b"canary.of.ours\n")
    assert asked(desk.credential("workload-identity", file="login")) == "canary-token"
    (tmp_path / "projected").write_text("canary.of.kubernetes")
    monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", str(tmp_path / "projected"))
    assert asked(desk.credential("workload-identity")) == "canary-token"
    assert [one["client_assertion"] for one in desk.login.asked] == ["canary.of.ours", "canary.of.kubernetes"]
    monkeypatch.delenv("AZURE_FEDERATED_TOKEN_FILE")
    denied(desk.credential("workload-identity"), "TARGET_CREDENTIAL_UNUSABLE")


def test_a_managed_identity_is_asked_of_the_platform(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for login in serving(Login(None)):
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"http://{login.host}/msi/token")
        monkeypatch.setenv("IDENTITY_HEADER", "canary-header")
        assert asked(desk.credential("managed-identity")) == "canary-token"
        (sent,) = login.asked
        assert (sent["resource"], sent["client_id"]) == ("https://vault.azure.net", CLIENT)
        login.answer = (400, {"statusCode": 400, "message": "no identity canary"})
        denied(desk.credential("managed-identity", client_id=TENANT), "TARGET_CREDENTIAL_UNUSABLE")
    assert desk.login.asked == []


@pytest.mark.parametrize(("scope", "tenant"), [
    ("https://graph.microsoft.com/.default", TENANT), ("https://vault.azure.net//.default", TENANT), (SCOPE, CLIENT),
    ("https://managedhsm.azure.net/.default", TENANT),
])  # fmt: skip
def test_BY_04_no_token_is_asked_for_another_service_or_tenant(desk: Desk, scope: str, tenant: str) -> None:
    desk.put(b"canary-secret")
    denied(desk.credential("client-secret", file="login"), "TARGET_CHALLENGE_REFUSED", scope=scope, tenant=tenant)
    assert desk.login.asked == []


def test_a_login_that_is_away_or_not_the_one_is_told(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.put(b"canary-secret")
    desk.login.answer = (503, {"error": "temporarily_unavailable", "error_description": "canary"})
    denied(desk.credential("client-secret", file="login"), "TARGET_UNREACHABLE")
    desk.login.ca_pem = ""  # the system's
    denied(desk.credential("client-secret", file="login"), "TARGET_TLS_UNTRUSTED")
    assert caplog.records == []


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_BY_04_the_environment_does_not_say_whose_login_is_trusted(
    desk: Desk, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.put(b"canary-secret")
    file = tmp_path / "ca.pem"
    file.write_text(desk.login.ca_pem)
    subprocess.run(["openssl", "rehash", str(tmp_path)], check=True)
    monkeypatch.setenv(name, str(tmp_path if name == "SSL_CERT_DIR" else file))
    desk.login.ca_pem = ""
    denied(desk.credential("client-secret", file="login"), "TARGET_TLS_UNTRUSTED")
    assert desk.login.asked == []


def test_environment_variables_of_azure_send_no_credential_elsewhere(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.put(b"canary-secret")
    monkeypatch.setenv("AZURE_AUTHORITY_HOST", "https://127.0.0.1:1")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    assert asked(desk.credential("client-secret", file="login")) == "canary-token"
