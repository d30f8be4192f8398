"""The process's own connected sockets, by descriptor: who is at the other end, and an end to one of them.

The C library is called with Python's lock held (PyDLL). Each of these calls is over in a microsecond and waits for
nothing, and there are thousands of them in a row; were the lock let go at each, as the functions of ``os`` and
``socket`` do, busy threads would take it each time.
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import sys
from collections.abc import Iterator
from itertools import count

from broker.rpc.networks import Place, normal

GAP = 512
"""Descriptors without a connection after which no further one is looked for: the system gives out the lowest first."""

_STORAGE = 128
"""sizeof(struct sockaddr_storage)"""

_ADDRESS = {socket.AF_INET: slice(4, 8), socket.AF_INET6: slice(8, 24)}


class Sockets:
    """Used by one thread at a time."""

    def __init__(self) -> None:
        self._library = ctypes.PyDLL(None)
        self._buffer = ctypes.create_string_buffer(_STORAGE)
        self._length = ctypes.c_uint(_STORAGE)
        self._reference = ctypes.byref(self._length)

    def connected(self, highest: int) -> Iterator[tuple[int, bytes]]:
        """Each descriptor of a connected socket, with the address of the other end as the system writes it.

        ``highest``: a descriptor that is looked at in any case, with all below it.
        """
        ask, buffer, length, reference = self._library.getpeername, self._buffer, self._length, self._reference
        last = highest + GAP
        for descriptor in count():
            length.value = _STORAGE
            if not ask(descriptor, buffer, reference):
                last = max(last, descriptor + GAP)
                yield descriptor, buffer.raw[: length.value]
            elif descriptor >= last:
                return

    def port(self, descriptor: int) -> int:
        """The local port of a socket over IP; 0 of anything else."""
        local = self._name(self._library.getsockname, descriptor)
        return int.from_bytes(local[2:4], "big") if _family(local) in _ADDRESS else 0

    def shut(self, descriptor: int, peer: bytes) -> bool:
        """End the connection, if the descriptor is still the one to ``peer``; its owner finds out and closes it."""
        library = self._library
        mine = library.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 0)  # what it names cannot become another one any more
        if mine < 0:
            return False
        try:
            return self._name(library.getpeername, mine) == peer and not library.shutdown(mine, socket.SHUT_RDWR)
        finally:
            library.close(mine)

    def _name(self, ask: object, descriptor: int) -> bytes:
        self._length.value = _STORAGE
        if ask(descriptor, self._buffer, self._reference):  # type: ignore[operator]  # a C function
            return b""
        return self._buffer.raw[: self._length.value]


def place(peer: bytes) -> Place:
    """The other end of a connection over IP; nothing and 0 of another one."""
    part = _ADDRESS.get(_family(peer))  # type: ignore[call-overload]  # a number is as good as the name
    if part is None:
        return b"", 0
    return normal(peer[part]), int.from_bytes(peer[2:4], "big")


def _family(address: bytes) -> int:
    return int.from_bytes(address[:2], sys.byteorder)
