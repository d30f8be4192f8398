"""An HTTP/2 client (RFC 9113) that costs next to nothing, so that what is measured is the server.

Only what two well-behaved servers need: requests are encoded once and sent as they are, headers of answers are not
decoded. The asker tells by an answer's content whether it is a good one.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1
LARGEST_WINDOW = 2**31 - 1
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_FRAME = 16 * 1024


class CutOffError(Exception):
    """The server ended the connection or a stream."""


def encoded(method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[bytes, bytes]:
    """A request: its header block (RFC 7541 6.2.2: literals that enter no table) and its body."""
    fields = {":method": method, ":scheme": "https", ":path": path, ":authority": "127.0.0.1", **headers}
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())
    assert max(len(block), len(body)) <= MAX_FRAME
    return block, body


def _text(text: str) -> bytes:
    """A length of seven bits and more (RFC 7541 5.1), and the octets as they are."""
    raw = text.encode()
    if len(raw) < 127:
        return bytes([len(raw)]) + raw
    rest, length = len(raw) - 127, bytearray([127])
    while rest >= 128:
        length.append(rest % 128 + 128)
        rest //= 128
    return bytes([*length, rest]) + raw


class Client:
    """One connection over TLS 1.3; the server's certificate is verified. Used by one thread."""

    def __init__(self, port: int, ca_file: Path, identity: tuple[Path, Path] | None = None) -> None:
        context = ssl.create_default_context(cafile=str(ca_file))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols(["h2"])
        if identity:
            context.load_cert_chain(*identity)
        plain = socket.create_connection(("127.0.0.1", port), timeout=30)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = context.wrap_socket(plain, server_hostname="127.0.0.1")
        self._received = bytearray()
        self._stream = -1
        settings = struct.pack(">HIHI", 2, 0, 4, LARGEST_WINDOW)  # no push; a window for each stream
        window = struct.pack(">I", LARGEST_WINDOW - 65535)
        self._socket.sendall(PREFACE + _frame(SETTINGS, 0, 0, settings) + _frame(8, 0, 0, window))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, *requests: tuple[bytes, bytes]) -> list[bytes]:
        """Send requests at once, each on a stream of its own; the bodies of their answers."""
        sent, answers = bytearray(), dict[int, bytearray]()
        for block, body in requests:
            self._stream += 2
            answers[self._stream] = bytearray()
            sent += _frame(HEADERS, END_HEADERS | (0 if body else END_STREAM), self._stream, block)
            if body:
                sent += _frame(DATA, END_STREAM, self._stream, body)
        self._socket.sendall(sent)
        self._answered(answers)
        return [bytes(answer) for answer in answers.values()]

    def _answered(self, answers: Mapping[int, bytearray]) -> None:
        waiting = set(answers)
        while waiting:
            kind, flags, stream, payload = self._next()
            if kind == DATA and stream in answers:
                answers[stream] += payload
            elif kind == GOAWAY or (kind == RST_STREAM and stream in waiting):
                raise CutOffError(f"frame {kind}: {payload.hex()}")
            elif kind in {SETTINGS, PING} and not flags & ACK:
                self._socket.sendall(_frame(kind, ACK, 0, payload if kind == PING else b""))
            if kind in {DATA, HEADERS} and flags & END_STREAM:
                waiting.discard(stream)

    def _next(self) -> tuple[int, int, int, bytes]:
        head = self._taken(9)
        length = int.from_bytes(head[:3], "big")
        kind, flags, stream = struct.unpack(">BBI", head[3:])
        return kind, flags, stream & LARGEST_WINDOW, self._taken(length)

    def _taken(self, count: int) -> bytes:
        while len(self._received) < count:
            found = self._socket.recv(65536)
            if not found:
                raise CutOffError("the connection was closed")
            self._received += found
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def good(answers: Sequence[bytes], part: bytes) -> None:
    """Every answer must hold ``part``, which no refusal does."""
    for answer in answers:
        if part not in answer:
            raise AssertionError(f"not the answer that was wanted: {answer[:300]!r}")
