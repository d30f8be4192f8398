"""A stretch of wire before a server that counts how long the server is waited for. It reads nothing of what goes by."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from typing import Self

CHUNK = 65536


class Relay:
    """Listens on a loopback port from the start; ``before`` says which port everything is handed on to."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self.answering = 0.0
        """Seconds from the last byte of each request until the last byte of its answer was on, all in all."""
        self._server = 0
        self._ends: list[socket.socket] = []

    def before(self, port: int) -> Self:
        """Hand everything on to this loopback port."""
        self._server = port
        return self

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for end in (self._listener, *self._ends):
            with contextlib.suppress(OSError):  # it may be closed already
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # that is how it ends
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server))
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._ends.append(end)
                threading.Thread(target=self._hand_on, args=(client, server), daemon=True).start()

    def _hand_on(self, client: socket.socket, server: socket.socket) -> None:
        last = time.perf_counter()
        with selectors.DefaultSelector() as ready, contextlib.suppress(OSError), client, server:
            ready.register(client, selectors.EVENT_READ, server)
            ready.register(server, selectors.EVENT_READ, client)
            while True:
                for key, _ in ready.select():
                    at = time.perf_counter()
                    some = key.fileobj.recv(CHUNK)  # type: ignore[union-attr]  # they are sockets
                    if not some:
                        return
                    key.data.sendall(some)
                    if key.fileobj is server:
                        at = time.perf_counter()
                        self.answering += at - last
                    last = at
