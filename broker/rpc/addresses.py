"""Whether an address can be listened on, and why not."""

from __future__ import annotations

import errno
import socket
from typing import Any

EVERYWHERE = frozenset({"0.0.0.0", "[::]"})  # noqa: S104  compared, not bound to
"""Hosts that mean all addresses of this one."""

_CURES = {
    errno.EADDRINUSE: "end what listens there (`ss -ltnp` shows it), or configure another port",
    errno.EACCES: "configure a port from 1024 on, or let the broker's user take lower ones (CAP_NET_BIND_SERVICE)",
    errno.EADDRNOTAVAIL: "configure an address that this host has",
}


def try_listening(address: str) -> tuple[int, int, int, Any]:
    """Listen there for a moment; family, kind, protocol and place of the socket. OSError or ValueError if it fails."""
    host, _, port = address.rpartition(":")
    family, kind, protocol, _, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as alone:
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alone.bind(place)
        alone.listen()
        return family, kind, protocol, alone.getsockname()


def why_not(address: str, fault: OSError | ValueError) -> str:
    """The sentence for what ``try_listening`` has raised, with the system's own reason."""
    if isinstance(fault, ValueError):
        return f"The broker cannot listen on {address}: that is not HOST:PORT."
    cure = "configure a host whose name resolves here" if isinstance(fault, socket.gaierror) else ""
    cure = cure or _CURES.get(fault.errno or 0, "configure another address")
    return f"The broker cannot listen on {address} ({fault.strerror}): {cure}."


def refused(address: str) -> str:
    """The sentence for an address that another part of the process could not listen on, and gave no reason."""
    try:
        try_listening(address)
    except (OSError, ValueError) as fault:
        return why_not(address, fault)
    return f"The broker could not listen on {address}, which is free now: start it again."
