"""HTTPS to one server: trusted CAs chosen here, no proxy, no redirect, no environment, bounded in time and size."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter

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
MAX_CAUSES = 16


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


def cause(error: BaseException | None) -> str:
    """The system's or OpenSSL's own reason for a request that came to nothing; "" when there is none to tell."""
    for _ in range(MAX_CAUSES):
        if error is None:
            return ""
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message or "it cannot be verified"
        if isinstance(error, ssl.SSLError):
            plain = error.reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST"}
            return "it does not speak TLS on that port" if plain else str(error.reason or "")
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        inner = getattr(error, "reason", None) or next((one for one in error.args if one is not error), None)
        error = inner if isinstance(inner, BaseException) else error.__cause__ or error.__context__
    return ""


def trusting(ca_pem: str) -> ssl.SSLContext:
    """Verify servers with these CAs (PEM), or with the system's when there are none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # requires a certificate and checks the name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = _BoundedSocket
    if not ca_pem:
        _trust_the_systems(context)
        return context
    try:
        context.load_verify_locations(cadata=ca_pem)
    except ssl.SSLError as error:
        raise InvalidRequest(
            Reason.TARGET_SETTINGS_INVALID,
            "The target's CA cannot be read as PEM certificates; give it as the file has it.",
        ) from error
    return context


def _trust_the_systems(context: ssl.SSLContext) -> None:
    """Not load_default_certs: variables of the environment (SSL_CERT_FILE, SSL_CERT_DIR) would say whom to trust."""
    paths = ssl.get_default_verify_paths()
    if Path(paths.openssl_cafile).is_file():
        context.load_verify_locations(cafile=paths.openssl_cafile)
    if Path(paths.openssl_capath).is_dir():
        context.load_verify_locations(capath=paths.openssl_capath)


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
