"""Where a peer comes from, as far as it counts for shares: its address, and the nets that one party can have whole.

Addresses and nets are octets here, because thousands of them may have to be sorted in a moment; an IPv4 address that is
mapped into IPv6 is the IPv4 one.
"""

from __future__ import annotations

import ipaddress
import socket
from functools import lru_cache
from urllib.parse import unquote

Place = tuple[bytes, int]
"""A host's address and a port; nothing and 0 of a peer that has none."""

_FOUR, _SIX = 4, 16
_MAPPED = bytes(10) + b"\xff\xff"


@lru_cache(4096)
def place(peer: str) -> Place:
    """Of a gRPC peer ("ipv4:10.0.0.1:5000", "ipv6:[2001:db8::1%eth0]:5000")."""
    kind, _, rest = peer.partition(":")
    host, _, port = rest.rpartition(":")
    family = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}.get(kind)
    try:
        if family is not None:
            return normal(socket.inet_pton(family, host.strip("[]").partition("%")[0])), int(port)
    except (OSError, ValueError):
        pass  # grpc does not write such a one; a peer that has it shares with all others that do
    return b"", 0


def normal(octets: bytes) -> bytes:
    """The octets of an address, or of the IPv4 address that is mapped into it."""
    return octets[12:] if len(octets) == _SIX and octets.startswith(_MAPPED) else octets


def nets(octets: bytes) -> tuple[bytes, bytes]:
    """What one host can have, an IPv4 address or an IPv6 /64, and what one site can: a /24 or a /48."""
    if len(octets) == _SIX:
        return octets[:8], octets[:6]
    return octets, octets[:3] if len(octets) == _FOUR else octets


def network(peer: str) -> bytes:
    """What of a gRPC peer one party can have whole: the net of one host."""
    return nets(place(unquote(peer))[0])[0]


def shown(net: bytes) -> str:
    """One host's net as people write it."""
    if len(net) == _FOUR:
        return f"{ipaddress.IPv4Address(net)}/32"
    return f"{ipaddress.IPv6Address(net + bytes(8))}/64" if len(net) == _SIX // 2 else "?"
