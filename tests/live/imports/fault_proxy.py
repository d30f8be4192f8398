"""A TLS hop before a real OpenBao, where a test decides what becomes of each request and its answer."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.servers.openbao import OpenBao, self_signed

PASS, LOSE_REQUEST, LOSE_ANSWER = 0, -1, -2
Rule = Callable[[str, str], int]
"""(method, path) → one of the above, or a status to answer with after the server has done what was asked."""


class FaultProxy:
    """Listens on a loopback port with a certificate of its own; ``rule`` may be changed at any time."""

    def __init__(self, server: OpenBao, folder: Path) -> None:
        self.rule: Rule = lambda _method, _path: PASS
        self.seen: list[str] = []
        self._server = server
        self._upstream_tls = ssl.create_default_context(cafile=str(server.ca_file))
        certificate, key = self_signed(folder)
        self.ca_pem = certificate.read_text()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._listener = _Listener(("127.0.0.1", 0), self._handler())
        self._listener.socket = context.wrap_socket(self._listener.socket, server_side=True)
        self.host = f"127.0.0.1:{self._listener.server_port}"
        self.address = f"https://{self.host}"
        self._thread = threading.Thread(target=self._listener.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()

    def count(self, part: str) -> int:
        return sum(part in line for line in self.seen)

    def forward(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        upstream = http.client.HTTPSConnection("127.0.0.1", self._server.port, context=self._upstream_tls, timeout=200)
        try:
            upstream.request(method, path, body, headers)
            answer = upstream.getresponse()
            return answer.status, answer.read()
        finally:
            upstream.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Relay(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 10

            def _relay(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.seen.append(f"{self.command} {self.path}")
                fate = proxy.rule(self.command, self.path)
                if fate == LOSE_REQUEST:
                    self.close_connection = True
                    return
                headers = {name: value for name, value in self.headers.items() if name.startswith("X-Vault")}
                status, answer = proxy.forward(self.command, self.path, body, headers)
                if fate == LOSE_ANSWER:
                    self.close_connection = True
                    return
                if fate > 0:
                    status, answer = fate, b'{"errors":["later"]}'
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_DELETE = _relay  # noqa: N815 - the names are http.server's

            def log_message(self, *_: object) -> None:
                """Quiet."""

        return Relay


class _Listener(ThreadingHTTPServer):
    """Hangs up on everybody when it closes, so that no kept connection holds the end of a test up."""

    daemon_threads = False

    def __init__(self, place: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(place, handler)
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        for request in list(self._open):
            with contextlib.suppress(OSError):  # it hung up by itself
                request.shutdown(socket.SHUT_RDWR)
        super().server_close()

    def handle_error(self, *_: object) -> None:
        """A client that does not like the certificate hangs up; that is what some tests are about."""
