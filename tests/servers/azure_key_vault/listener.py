"""HTTPS on a loopback port: a thread a connection, requests in, answers out, and the faults that are not answers."""

from __future__ import annotations

import json
import ssl
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from .faults import Effect

LARGEST_BODY = 1 << 20


@dataclass(frozen=True)
class Request:
    """One request as it came; header names in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True)
class Answer:
    """What goes back; ``body`` as JSON, bytes as they are, none for None."""

    status: int
    body: dict[str, Any] | bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)


class Listener(ThreadingHTTPServer):
    """Serves ``answer`` until it is closed; then no thread (they are named "vault PORT") and no connection is left."""

    daemon_threads = False
    block_on_close = True
    request_queue_size = 64

    def __init__(self, port: int, context: ssl.SSLContext, answer: Callable[[Request], Answer | Effect]) -> None:
        super().__init__(("127.0.0.1", port), _Exchange)
        self.context, self.answer = context, answer
        self.closing = threading.Event()
        self.crashes: list[BaseException] = []
        self._open: set[ssl.SSLSocket] = set()
        self._lock = threading.Lock()
        self._name = f"vault {self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, name=self._name)

    def start(self) -> None:
        """Serve from now on, in threads of its own."""
        self._thread.start()

    def close(self) -> None:
        """Cut every connection, the hanging ones too, and wait for the threads."""
        self.closing.set()
        self.shutdown()
        with self._lock:
            for connection in self._open:
                _cut(connection)
        self._thread.join()
        self.server_close()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """The handshake is made here, in the connection's thread, so that a slow client keeps nobody waiting."""
        threading.current_thread().name = self._name
        request.settimeout(30)
        with self.context.wrap_socket(request, server_side=True) as connection:
            with self._lock:
                self._open.add(connection)
            try:
                if not self.closing.is_set():
                    super().finish_request(connection, client_address)
            finally:
                with self._lock:
                    self._open.discard(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 (the library's signature)
        """A client that goes away or does not trust us is no fault of ours; everything else is kept for ``close``."""
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            self.crashes.append(error)


def _cut(connection: ssl.SSLSocket) -> None:
    try:
        connection.shutdown(2)
    except OSError:
        return  # it is closed already


class _Exchange(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # header and body leave together
    disable_nagle_algorithm = True
    server: Listener

    def _exchange(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not length.isdecimal() or int(length) > LARGEST_BODY:
            self.close_connection = True
            self.rfile.read(min(int(length), 16 * LARGEST_BODY) if length.isdecimal() else 0)  # or the answer is lost
            self._send(Answer(413, {"error": {"code": "RequestEntityTooLarge", "message": "The body is too large."}}))
            return
        target = urlsplit(self.path)
        request = Request(
            self.command,
            unquote(target.path),
            dict(parse_qsl(target.query, keep_blank_values=True)),
            {name.lower(): value for name, value in self.headers.items()},
            self.rfile.read(int(length)),
        )
        answer = self.server.answer(request)
        if isinstance(answer, Answer):
            self._send(answer)
            return
        if answer is Effect.HANG:
            self.server.closing.wait()
        self.close_connection = True
        _cut(self.connection)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = do_HEAD = _exchange  # noqa: N815 (the library's names)

    def _send(self, answer: Answer) -> None:
        told = b"" if answer.body is None else answer.body
        body = told if isinstance(told, bytes) else json.dumps(told).encode()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.body is not None:
            self.send_header("Content-Type", "application/json; charset=utf-8")
        if answer.status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Requests are kept by the vault; nothing is printed."""
