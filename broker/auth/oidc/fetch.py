"""One small document over HTTPS from a place that was decided beforehand: no redirect, no proxy, no environment.

The address that is connected to is the very one that was checked, so a name that resolves differently the second time
changes nothing. Size and time have limits however slowly the name's address comes, or the answer drips in.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import re
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Any

from broker.auth.oidc.resolve import Ask, Resolver, system
from broker.core.trust.presets import HOST

URL = re.compile(rf"https://({HOST})(?::([1-9][0-9]{{0,4}}))?(/[A-Za-z0-9._~%/+-]*)?", re.ASCII)
MAX_BODY = 256 * 1024
MAX_HEAD = 32 * 1024
SECONDS = 10.0
CONNECT_SECONDS = 1.5
MAX_ADDRESSES = 3
EMBEDDING = tuple(
    map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96", "::ffff:0:0:0/96"))
)
"""Addresses of version 6 that carry one of version 4: translated on the way, they could lead anywhere."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why there is no document; ``text`` holds nothing that the other side wrote, but the name of a host.

    ``lasting``: it will not be had before somebody changes a setting. ``forbidden``: the other side says whose.
    """

    text: str
    lasting: bool = False
    forbidden: bool = False


class NotFetchedError(Exception):
    """There is no document, for the reason that ``fault`` tells."""

    def __init__(self, text: str, *, lasting: bool = False, forbidden: bool = False) -> None:
        super().__init__(text)
        self.fault = Fault(text, lasting=lasting or forbidden, forbidden=forbidden)


def place(url: str) -> tuple[str, int, str]:
    """(host, port, path) of an https address with no user, query or fragment; NotFetchedError for anything else."""
    found = URL.fullmatch(url) if len(url) <= 2048 else None
    if found is None:
        raise NotFetchedError("an address is not plain https", lasting=True)
    return found[1], int(found[2] or 443), found[3] or "/"


class Fetcher:
    """Fetches documents; ``allowed_hosts`` ("host:port") may be at private addresses too."""

    def __init__(self, allowed_hosts: frozenset[str], ask: Ask = system) -> None:
        self.allowed_hosts = allowed_hosts
        self._resolver = Resolver(ask)

    def get(self, url: str, ca_pem: str, deadline: float) -> bytes:
        """The body at ``url``, of at most 256 KiB and by ``deadline`` (monotonic seconds); else NotFetchedError.

        ``ca_pem``: the CA of that server, "" for the system's.
        """
        return self._asked("GET", url, ca_pem, deadline, "", b"")

    def post(self, url: str, ca_pem: str, deadline: float, token: str, document: bytes) -> bytes:
        """As ``get``, with a JSON document and a bearer token (visible ASCII) of the broker's own."""
        more = f"Authorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: {len(document)}\r\n"
        return self._asked("POST", url, ca_pem, deadline, more, document)

    def _asked(self, method: str, url: str, ca_pem: str, deadline: float, more: str, document: bytes) -> bytes:
        host, port, path = place(url)
        try:
            with (
                self._connected(host, port, deadline) as plain,
                _trusting(ca_pem).wrap_socket(plain, server_hostname=host) as connection,
            ):
                name = host if port == 443 else f"{host}:{port}"
                head = (
                    f"{method} {path} HTTP/1.1\r\nHost: {name}\r\nAccept: application/json\r\n"
                    f"User-Agent: hsm-broker\r\nAccept-Encoding: identity\r\nConnection: close\r\n{more}\r\n"
                )
                connection.sendall(head.encode("ascii") + document)
                return _body(_all(connection, deadline))
        except ssl.SSLCertVerificationError as error:
            raise NotFetchedError("its certificate is not trusted", lasting=True) from error
        except TimeoutError as error:
            raise NotFetchedError("it did not answer in time") from error
        except (OSError, ValueError) as error:
            raise NotFetchedError("it cannot be reached") from error

    def _connected(self, host: str, port: int, deadline: float) -> socket.socket:
        anywhere = f"{host}:{port}" in self.allowed_hosts
        try:
            found = self._resolver.addresses(host, port, deadline)
        except TimeoutError as error:
            raise NotFetchedError("its name was not resolved in time") from error
        usable = [address for *_, address in found if anywhere or is_public(str(address[0]))]
        if not usable:
            raise NotFetchedError(
                "its address is not a public one, and [oidc] allowed_hosts does not name it", lasting=True
            )
        failure: OSError = OSError("no address")
        for address in usable[:MAX_ADDRESSES]:
            try:
                return socket.create_connection(address[:2], timeout=min(_left(deadline), CONNECT_SECONDS))
            except OSError as error:
                failure = error
        raise failure


def is_public(address: str) -> bool:
    """Whether anybody on the internet means the same host by it."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:  # with a zone, so of a link
        return False
    if isinstance(found, ipaddress.IPv6Address) and (
        found.ipv4_mapped or found.is_site_local or any(found in network for network in EMBEDDING)
    ):
        return False
    return found.is_global and not found.is_multicast


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _all(connection: ssl.SSLSocket, deadline: float) -> bytes:
    """Everything until the other side closes."""
    answer = bytearray()
    while True:
        connection.settimeout(_left(deadline))
        chunk = connection.recv(65536)
        if not chunk:
            return bytes(answer)
        answer += chunk
        if len(answer) > MAX_HEAD + MAX_BODY:
            raise NotFetchedError("its answer is too long")


class _Answer:
    """What ``http.client`` wants of a socket."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def makefile(self, *_: Any) -> io.BytesIO:
        return io.BytesIO(self._raw)


def _body(raw: bytes) -> bytes:
    response = http.client.HTTPResponse(_Answer(raw))  # type: ignore[arg-type]  # it reads, and nothing else
    try:
        response.begin()
        body = response.read(MAX_BODY + 1)
    except http.client.HTTPException as error:
        raise NotFetchedError("its answer is no HTTP") from error
    if response.status not in {200, 201}:  # 201: what a POST was asked to make
        raise _status(response.status)
    if len(body) > MAX_BODY:
        raise NotFetchedError("its answer is too long")
    return body


def _status(status: int) -> NotFetchedError:
    """401 and 403 say that one may not; other answers below 500 that something is wrong, but for "later" (408, 429)."""
    lasting = status < 500 and status not in {408, 425, 429}
    return NotFetchedError(f"it answered with status {status}", lasting=lasting, forbidden=status in {401, 403})


def _trusting(ca_pem: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # requires a certificate and checks the name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_pem:
        context.load_verify_locations(cadata=ca_pem)
        return context
    # Not load_default_certs: an environment variable would say whom to trust.
    paths = ssl.get_default_verify_paths()
    context.load_verify_locations(paths.openssl_cafile, paths.openssl_capath)
    return context
