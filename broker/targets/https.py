"""HTTPS to one server: trusted CAs chosen here, no proxy, no redirect, no environment, bounded in time and size."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from broker import tls_client
from broker.core.errors import InvalidRequest
from broker.core.reasons import Reason
from broker.targets.openssl import clear_errors

CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0
TOTAL_SECONDS = 20.0
"""However slowly an answer drips in, it is given up after this."""

LISTING_SECONDS = 15.0
"""For reading back: after an upload that was not answered it must be over before the caller's 30 s are."""

MAX_ANSWER_BYTES = 1 << 20
"""A transit key with a thousand RSA versions is read in about 600 kB."""

CONNECTIONS = 8


class _Time(threading.local):
    """When the thread's work must be over, on the monotonic clock; ``whole``: that of several requests together."""

    up = 0.0
    whole = False


_time = _Time()


@contextmanager
def together(seconds: float = TOTAL_SECONDS) -> Iterator[None]:
    """All requests that the thread makes inside share these seconds."""
    if _time.whole:  # what is asked for within a whole is part of it
        yield
        return
    _time.up, _time.whole = time.monotonic() + seconds, True
    try:
        yield
    finally:
        _time.whole = False


def left() -> float:
    """Seconds until the thread's time is up; 0 or less when it is."""
    return _time.up - time.monotonic()


def session(context: ssl.SSLContext, *prefixes: str) -> requests.Session:
    """A session that reaches what starts with one of these ``https://…/`` and nothing else."""
    made = requests.Session()
    made.trust_env = False  # proxies, .netrc and CA bundles of the environment have no say
    made.headers.update({"Accept-Encoding": "identity", "User-Agent": "hsm-broker"})
    made.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    made.adapters.clear()
    for prefix in prefixes:
        made.mount(prefix, _BoundedAdapter(context))
    return made


def trusting(ca_pem: str) -> ssl.SSLContext:
    """Verify servers with these CAs (PEM), or with the system's when there are none."""
    try:
        return tls_client.trusting(ca_pem, _BoundedSocket)
    except ssl.SSLError as error:
        raise InvalidRequest(
            Reason.TARGET_SETTINGS_INVALID,
            "The target's CA cannot be read as PEM certificates; give it as the file has it.",
        ) from error


class _BoundedAdapter(HTTPAdapter):
    """Trusts what its context trusts only, and reads no more of an answer than the limits allow."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__(pool_connections=1, pool_maxsize=CONNECTIONS)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any) -> None:  # noqa: FBT001, FBT002 - the signature is requests'
        super().init_poolmanager(connections, maxsize, block, ssl_context=self._context, **pool_kwargs)

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Do not add the public CAs to the context, as requests would; the context requires a certificate by itself."""

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        if not _time.whole:
            _time.up = time.monotonic() + TOTAL_SECONDS
        remaining = left()
        if remaining <= 0:
            raise requests.Timeout("the time for the whole is up")
        kwargs["stream"] = True
        kwargs["timeout"] = (min(CONNECT_SECONDS, remaining), min(READ_SECONDS, remaining))
        clear_errors()
        response = super().send(request, *args, **kwargs)
        try:
            response._content = _bounded(response.raw)  # noqa: SLF001 - the one place requests keeps a body that was read for it
        except BaseException:
            response.close()
            raise
        return response


class _BoundedSocket(ssl.SSLSocket):
    """Reads until the thread's time is up: the headers drip in here too, without an end if need be."""

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        remaining = left()
        if remaining <= 0:
            raise TimeoutError("the answer took too long")
        self.settimeout(min(READ_SECONDS, remaining))
        return super().recv_into(*args, **kwargs)


def _bounded(raw: Any) -> bytes:
    body = bytearray()
    while chunk := raw.read1(65536):
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise requests.exceptions.ContentDecodingError("the answer is too long")
    return bytes(body)
