"""Unauthenticated callers that hold connections open: a program of its own, so that its descriptors are not the
broker's.

Run as ``python -m tests.servers.siege PORT KIND COUNT ADDRESS...``; it says how many it has opened, goes on opening
anew (``AGAIN`` a second) what is closed on it, and ends with its standard input.
"""

from __future__ import annotations

import resource
import selectors
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

AGAIN = 200
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def hello() -> bytes:
    """A ClientHello, after which nothing comes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


def silent(_raw: socket.socket) -> None:
    """Say nothing."""


def half(raw: socket.socket) -> None:
    """Begin the handshake."""
    raw.sendall(hello())


def drip(raw: socket.socket) -> None:
    """Shake hands and send half of the preface of HTTP/2. What was read of the server's first words is thrown away."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    raw.settimeout(5)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            raw.sendall(outgoing.read())
            received = raw.recv(65536)
            if not received:
                raise ConnectionResetError from None
            incoming.write(received)
    tls.write(PREFACE[:12])
    raw.sendall(outgoing.read())


KINDS: dict[str, Callable[[socket.socket], None]] = {"silent": silent, "half": half, "drip": drip}


class Siege:
    """``count`` connections to ``port``, from the addresses in turn."""

    def __init__(self, port: int, kind: str, count: int, addresses: Sequence[str]) -> None:
        self._port, self._begin, self._addresses = port, KINDS[kind], addresses
        self._held = selectors.DefaultSelector()
        self._made = 0
        for _ in range(count):
            self._dial()

    def _dial(self) -> None:
        raw = socket.socket()
        self._made += 1
        try:
            raw.settimeout(5)
            raw.bind((self._addresses[self._made % len(self._addresses)], 0))
            raw.connect(("127.0.0.1", self._port))
            self._begin(raw)
            raw.setblocking(False)
        except OSError:
            raw.close()
            return
        self._held.register(raw, selectors.EVENT_READ)

    def go_on(self) -> None:
        """Read what comes; open anew what is closed, so many a second."""
        while True:
            until, closed = time.monotonic() + 0.1, 0
            while (left := until - time.monotonic()) > 0:
                for key, _ in self._held.select(left):
                    closed += self._is_over(key.fileobj)
            for _ in range(min(closed, AGAIN // 10)):
                self._dial()

    def _is_over(self, raw: object) -> bool:
        assert isinstance(raw, socket.socket)
        with suppress(BlockingIOError, ConnectionError):
            if raw.recv(65536):
                return False
        self._held.unregister(raw)
        raw.close()
        return True


def addresses(count: int, *, sites: bool = False) -> list[str]:
    """Loopback addresses: of one /24, or each of a /24 of its own."""
    return [f"127.9.{number}.1" if sites else f"127.9.0.{number}" for number in range(1, count + 1)]


@contextmanager
def siege(port: int, kind: str, count: int, sources: Sequence[str]) -> Iterator[None]:
    """While it stands, and from when all of it was dialled once."""
    command = [sys.executable, "-m", "tests.servers.siege", str(port), kind, str(count), *sources]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"stands\n"
        yield
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(200)


def main() -> None:
    """The program."""
    port, kind, count, *sources = sys.argv[1:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    made = Siege(int(port), kind, int(count), sources)
    sys.stdout.write("stands\n")
    sys.stdout.flush()
    threading.Thread(target=made.go_on, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
