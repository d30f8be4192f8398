"""One small document over HTTPS from a place that was decided beforehand: no redirect, no proxy, no environment.

The address that is connected to is the very one that was checked, so a name that resolves differently the second time
changes nothing. Size and time have limits however slowly the name's address comes, or the answer drips in.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import urllib3
from urllib3.connection import HTTPSConnection

from broker import tls_client
from broker.auth.oidc.resolve import Ask, Resolver, system
from broker.core.trust.presets import HOST

URL = re.compile(rf"https://({HOST})(?::([1-9][0-9]{{0,4}}))?(/[A-Za-z0-9._~%/+-]*)?", re.ASCII)
MAX_BODY = 256 * 1024
MAX_HEAD = 32 * 1024
SECONDS = 10.0
CONNECT_SECONDS = 1.5
"""Seconds that an address has to be connected to, so that there is time for the next; the last has all that is left."""

MAX_ADDRESSES = 3
HEADERS = {
    "Accept": "application/json", "Accept-Encoding": "identity", "Connection": "close", "User-Agent": "hsm-broker",
}  # fmt: skip
UNCONNECTED = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)
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
        return self._asked("GET", url, ca_pem, deadline, {}, None)

    def post(self, url: str, ca_pem: str, deadline: float, token: str, document: bytes) -> bytes:
        """As ``get``, with a JSON document and a bearer token (visible ASCII) of the broker's own."""
        more = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        return self._asked("POST", url, ca_pem, deadline, more, document)

    def _asked(
        self, method: str, url: str, ca_pem: str, deadline: float, more: Mapping[str, str], document: bytes | None
    ) -> bytes:
        host, port, path = place(url)
        headers = {"Host": host if port == 443 else f"{host}:{port}", **HEADERS, **more}
        with _telling(), closing(self._connected(host, port, ca_pem, deadline)) as connection:
            connection.request(method, path, document, headers, preload_content=False)
            with connection.getresponse() as response:
                return _body(response)

    def _connected(self, host: str, port: int, ca_pem: str, deadline: float) -> HTTPSConnection:
        """One that is open to an address that was looked at; its certificate is for the host all the same."""
        addresses = self._addresses(host, port, deadline)[:MAX_ADDRESSES]
        context = tls_client.trusting(ca_pem, _bounded(deadline))
        while True:
            address, *addresses = addresses
            seconds = min(_left(deadline), CONNECT_SECONDS) if addresses else _left(deadline)
            connection = HTTPSConnection(*address, server_hostname=host, ssl_context=context, timeout=seconds)
            try:
                connection.connect()
            except BaseException as error:
                connection.close()
                if not addresses or not isinstance(error, UNCONNECTED):
                    raise
            else:
                return connection

    def _addresses(self, host: str, port: int, deadline: float) -> list[tuple[str, int]]:
        anywhere = f"{host}:{port}" in self.allowed_hosts
        try:
            found = self._resolver.addresses(host, port, deadline)
        except TimeoutError as error:
            raise NotFetchedError("its name was not resolved in time") from error
        usable = [address[:2] for *_, address in found if anywhere or is_public(str(address[0]))]
        if not usable:
            raise NotFetchedError(
                "its address is not a public one, and [oidc] allowed_hosts does not name it", lasting=True
            )
        return usable


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


def _bounded(deadline: float) -> type[ssl.SSLSocket]:
    """Sockets that receive until then and no more than an answer may have: its head drips in here too."""

    class Bounded(ssl.SSLSocket):
        room = MAX_HEAD + MAX_BODY

        def recv_into(self, *args: Any, **kwargs: Any) -> int:
            self.settimeout(_left(deadline))
            received = super().recv_into(*args, **kwargs)
            self.room -= received
            if self.room < 0:
                raise NotFetchedError("its answer is too long")
            return received

    return Bounded


@contextmanager
def _telling() -> Iterator[None]:
    """Raise what comes in between as a NotFetchedError that says so, with the system's own reason."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise NotFetchedError(_because("its certificate is not trusted", error), lasting=True) from error
    except urllib3.exceptions.NewConnectionError as error:  # urllib3 counts it among the timeouts
        raise NotFetchedError(_because("it cannot be reached", error)) from error
    except (TimeoutError, urllib3.exceptions.TimeoutError) as error:
        raise NotFetchedError("it did not answer in time") from error
    except (http.client.HTTPException, urllib3.exceptions.InvalidHeader) as error:
        raise NotFetchedError("its answer is no HTTP") from error
    except urllib3.exceptions.ProtocolError as error:
        raise NotFetchedError("its answer broke off") from error
    except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
        raise NotFetchedError(_because("it cannot be reached", error)) from error


def _because(text: str, error: BaseException) -> str:
    why = tls_client.cause(error)
    return f"{text} ({why})" if why else text


def _body(response: urllib3.HTTPResponse) -> bytes:
    if response.status not in {200, 201}:  # 201: what a POST was asked to make
        raise _status(response.status)
    body = bytearray()
    while chunk := response.read(65536, decode_content=False):
        body += chunk
        if len(body) > MAX_BODY:
            raise NotFetchedError("its answer is too long")
    return bytes(body)


def _status(status: int) -> NotFetchedError:
    """401 and 403 say that one may not; other answers below 500 that something is wrong, but for "later" (408, 429)."""
    lasting = status < 500 and status not in {408, 425, 429}
    return NotFetchedError(f"it answered with status {status}", lasting=lasting, forbidden=status in {401, 403})
