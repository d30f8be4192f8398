"""Between the broker and the server: the environment, other servers in its place, slow and endless answers."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.core import ports
from broker.core.errors import BrokerError, Unavailable, WrongState
from broker.targets import Surroundings, connector, https
from broker.targets.openssl import clear_errors
from broker.targets.vault.target import VaultTarget
from tests.live.imports.bench import Mount
from tests.servers.openbao import OpenBao, self_signed

Talk = Callable[[ssl.SSLSocket, threading.Event], None]


class Impostor:
    """A TLS server that is not Vault; it says what a test wants, once a connection, and keeps what it was sent."""

    def __init__(self, folder: Path, talk: Talk) -> None:
        certificate, key = self_signed(folder)
        self.ca_pem = certificate.read_text()
        self.over = threading.Event()
        self.heard: list[bytes] = []
        self._talk = talk
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self.over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while not self.over.is_set():
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return  # closed
            with raw:
                self._answer(raw)

    def _answer(self, raw: socket.socket) -> None:
        try:
            with self._context.wrap_socket(raw, server_side=True) as connection:
                self.heard.append(connection.recv(65536))
                self._talk(connection, self.over)
        except OSError:
            pass  # the broker hung up, which is what some tests are about


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[Callable[[Talk], tuple[Impostor, ports.Target]]]:
    made: list[Impostor] = []

    def meet(talk: Talk) -> tuple[Impostor, ports.Target]:
        one = Impostor(tmp_path / f"impostor-{len(made)}", talk)
        made.append(one)
        credentials = tmp_path / "credentials"
        (credentials / one.host).mkdir(parents=True, exist_ok=True)
        file = credentials / one.host / "vault-token"
        file.touch(mode=0o600)
        file.write_text("s.canary")
        settings = {
            "address": f"https://{one.host}", "mount": "transit", "ca_pem": one.ca_pem, "token_file": "vault-token",
        }  # fmt: skip
        connect = connector(Surroundings(allowed_hosts=frozenset({one.host}), credentials=credentials))
        return one, connect("vault-token", "vault", settings)

    yield meet
    for one in made:
        one.close()


def says(text: bytes) -> Talk:
    def talk(connection: ssl.SSLSocket, _over: threading.Event) -> None:
        connection.sendall(text)

    return talk


def http(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def told(port: ports.Target) -> BrokerError:
    with pytest.raises(BrokerError) as caught:
        port.offer()
    assert "canary" not in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize("answer", [
    b"220 mail.example ESMTP\r\n",
    b"",
    http("200 OK", b"<html>hello</html>", "Content-Type: text/html"),
    http("200 OK", b"[1, 2]"),
    http("200 OK", b'{"data": 7}'),
    http("200 OK", b"[" * 100_000),
    http("502 Bad Gateway", b"<html>proxy</html>"),
    http("500 Oops", b"\xff\xfe\x00"),
    http("200 OK", b"")[:-2],
    b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{",
])  # fmt: skip
def test_answers_that_are_not_the_vault_api_are_told_in_one_sentence(
    impostor: Callable[[Talk], tuple[Impostor, ports.Target]], answer: bytes
) -> None:
    _, port = impostor(says(answer))
    error = told(port)
    assert isinstance(error, Unavailable)
    assert error.reason == "TARGET_UNREACHABLE"


def test_no_redirect_is_followed(impostor: Callable[[Talk], tuple[Impostor, ports.Target]]) -> None:
    elsewhere, _ = impostor(says(b""))
    where = f"Location: https://{elsewhere.host}/v1/transit/wrapping_key"
    for status in ("301 Moved", "307 Temporary Redirect", "308 Permanent Redirect"):
        _, port = impostor(says(http(status, b"{}", where)))
        assert "redirects" in told(port).message
    assert elsewhere.heard == []


def test_the_token_is_not_shown_even_when_the_server_quotes_it(
    impostor: Callable[[Talk], tuple[Impostor, ports.Target]],
) -> None:
    _, port = impostor(says(http("400 Bad Request", b'{"errors": ["bad token s.canary"]}')))
    assert isinstance(told(port), WrongState)


def test_what_the_server_says_is_cut_and_put_on_one_line(
    impostor: Callable[[Talk], tuple[Impostor, ports.Target]],
) -> None:
    _, port = impostor(says(http("400 Bad Request", b'{"errors": ["a\\n\\u001b[31mb' + b"x" * 5000 + b'"]}')))
    error = told(port)
    assert "a [31mbx" in error.message
    assert len(error.message) < 300


def test_an_endless_answer_is_given_up(impostor: Callable[[Talk], tuple[Impostor, ports.Target]]) -> None:
    def talk(connection: ssl.SSLSocket, over: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while not over.is_set():
            connection.sendall(b" " * 65536)

    _, port = impostor(talk)
    assert told(port).reason == "TARGET_UNREACHABLE"


def test_silence_and_dripping_are_given_up_in_time(
    impostor: Callable[[Talk], tuple[Impostor, ports.Target]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Patched, as the next: the real times are tens of seconds, which nobody configures.
    monkeypatch.setattr(https, "READ_SECONDS", 0.2)
    # As above.
    monkeypatch.setattr(https, "TOTAL_SECONDS", 0.4)

    def silent(_connection: ssl.SSLSocket, over: threading.Event) -> None:
        over.wait(20)

    def drip(connection: ssl.SSLSocket, over: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while not over.wait(0.05):
            connection.sendall(b" ")

    def drip_headers(connection: ssl.SSLSocket, over: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        while not over.wait(0.05):
            connection.sendall(b"y")

    def put_off(connection: ssl.SSLSocket, over: threading.Event) -> None:
        while not over.wait(0.05):
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    for talk in (silent, drip, drip_headers, put_off):
        _, port = impostor(talk)
        error = told(port)
        assert error.reason == "TARGET_UNREACHABLE"
        assert "in time" in error.message


def _hang_up(listener: socket.socket) -> None:
    listener.accept()[0].close()


def test_a_server_without_tls_is_told(tmp_path: Path, openbao: OpenBao) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_hang_up, args=(listener,))
        thread.start()
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        mount = Mount(openbao, tmp_path, openbao.mount)
        surroundings = Surroundings(allowed_hosts=frozenset({host}), credentials=mount.credentials)
        port = connector(surroundings)("bao", "vault", mount.settings(f"https://{host}"))
        assert told(port).reason == "TARGET_UNREACHABLE"
        thread.join()


def test_NT_17_nothing_of_the_environment_has_a_say(
    openbao: OpenBao, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VAULT_ADDR", "BAO_ADDR", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("VAULT_TOKEN", "VAULT_NAMESPACE", "VAULT_CACERT", "VAULT_CAPATH", "VAULT_CLIENT_CERT"):
        monkeypatch.setenv(name, "nonsense")
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, str(openbao.ca_file))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".vault-token").write_text("nonsense")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b")
    mount = Mount(openbao, tmp_path, openbao.mount)
    connect = connector(Surroundings(allowed_hosts=frozenset({openbao.host}), credentials=mount.credentials))
    assert connect("bao", "vault", mount.settings()).offer().key.thumbprint
    other = self_signed(tmp_path / "other")[0].read_text()
    assert told(connect("bao", "vault", mount.settings(ca_pem=other))).reason == "TARGET_TLS_UNTRUSTED"


def test_the_registered_ca_is_the_only_one_that_is_trusted(openbao: OpenBao, tmp_path: Path) -> None:
    mount = Mount(openbao, tmp_path, openbao.mount)
    connect = connector(Surroundings(allowed_hosts=frozenset({openbao.host}), credentials=mount.credentials))
    port = connect("bao", "vault", mount.settings())
    port.offer()
    assert isinstance(port, VaultTarget)
    adapter = port._adapter.session.get_adapter(f"{openbao.address}/")  # noqa: SLF001 - no test's server has a public CA's certificate
    # Also after use: requests would have added its bundle.
    assert len(adapter._context.get_ca_certs()) == 1  # noqa: SLF001 - as above


def test_a_connection_is_kept_and_a_restart_of_the_server_is_no_trouble(openbao_own: OpenBao, tmp_path: Path) -> None:
    mount = Mount(openbao_own, tmp_path, openbao_own.mount)
    connect = connector(Surroundings(allowed_hosts=frozenset({openbao_own.host}), credentials=mount.credentials))
    port = connect("bao", "vault", mount.settings())
    kek = port.offer().key
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count is all that is wanted
    for _ in range(20):
        assert port.offer().key == kek
    # Other tests' servers in this process open some, too; one for each offer would be twenty.
    assert len(os.listdir("/proc/self/fd")) < descriptors + 10  # noqa: PTH208 - as above
    openbao_own.stop()
    assert told(port).reason == "TARGET_UNREACHABLE"
    openbao_own.start()
    assert port.offer().key == kek


def test_errors_that_a_pkcs11_module_left_in_openssl_do_not_reach_tls(openbao: OpenBao, tmp_path: Path) -> None:
    import _ssl  # noqa: PLC0415 - only to find the libcrypto that Python uses
    import ctypes  # noqa: PLC0415 - to leave an error there, as SoftHSM does

    libcrypto = ctypes.CDLL(_ssl.__file__)
    mount = Mount(openbao, tmp_path, openbao.mount)
    connect = connector(Surroundings(allowed_hosts=frozenset({openbao.host}), credentials=mount.credentials))
    port = connect("bao", "vault", mount.settings())
    port.offer()
    libcrypto.ENGINE_by_id(b"no-such-engine")
    assert libcrypto.ERR_peek_error() != 0
    port.offer()
    libcrypto.ENGINE_by_id(b"no-such-engine")
    clear_errors()
    assert libcrypto.ERR_peek_error() == 0
