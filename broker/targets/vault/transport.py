"""HTTPS to one Vault or OpenBao server: pinned CA, no proxy, no redirect, no environment, bounded in time and size."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
import urllib3
from hvac.adapters import RawAdapter
from requests.adapters import HTTPAdapter

from broker.core.errors import BrokerError, InvalidRequest
from broker.targets.vault import refusals
from broker.targets.vault.openssl import clear_errors
from broker.targets.vault.settings import VaultSettings

CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0
TOTAL_SECONDS = 20.0
"""However slowly an answer drips in, it is given up after this."""

MAX_ANSWER_BYTES = 1 << 20
"""A transit key with a thousand RSA versions is read in about 600 kB."""

CONNECTIONS = 8

_time_is_up = threading.local()


class Transport:
    """Requests to one server, thread-safe, over connections that are kept. Raises only ``BrokerError``."""

    def __init__(self, settings: VaultSettings, token: Callable[[], str]) -> None:
        self._mount = settings.mount
        self._host = settings.host
        self._token = token
        session = requests.Session()
        session.trust_env = False  # proxies, .netrc and CA bundles of the environment have no say
        session.headers.update({"Accept-Encoding": "identity", "User-Agent": "hsm-broker"})
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        session.adapters.clear()
        session.mount("https://", _PinnedAdapter(_trusting(settings.ca_pem)))
        # hvac's Client would read VAULT_* variables; its adapter takes everything from here.
        self._adapter = RawAdapter(
            base_uri=settings.address,
            session=session,
            namespace=settings.namespace or None,
            timeout=(CONNECT_SECONDS, READ_SECONDS),
            allow_redirects=False,
            ignore_exceptions=True,
        )

    def read(self, path: str, **query: str) -> dict[str, Any] | None:
        """The ``data`` of a path below the mount; None when there is nothing there."""
        return self._ask("get", path, f"{self._mount}/{path}", params=query)

    def write(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Write below the mount; the ``data`` of the answer, {} when it has none."""
        return self._ask("post", path, f"{self._mount}/{path}", json=body) or {}

    def delete(self, path: str) -> None:
        """Delete below the mount."""
        self._ask("delete", path, f"{self._mount}/{path}")

    def capabilities(self, paths: list[str]) -> dict[str, list[str]]:
        """What the token may do at each of these paths below the mount."""
        full = [f"{self._mount}/{path}" for path in paths]
        answer = self._ask("post", "sys/capabilities-self", "sys/capabilities-self", json={"paths": full}) or {}
        return {path: answer.get(whole) or [] for path, whole in zip(paths, full, strict=True)}

    def _ask(self, method: str, path: str, url: str, **content: Any) -> dict[str, Any] | None:
        token = self._token()
        clear_errors()
        try:
            response = self._adapter.request(method, f"/v1/{url}", headers={"X-Vault-Token": token}, **content)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise self._broken(error) from error
        return refusals.opened(response.status_code, response.content, self._mount, path, self._host, token)

    def _broken(self, error: Exception) -> BrokerError:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return refusals.untrusted(self._host)
        slow = isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError)
        return refusals.unreachable(self._host, "did not answer in time" if slow else "cannot be reached")


class _PinnedAdapter(HTTPAdapter):
    """Trusts one CA only, and reads no more of an answer than the limits allow."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__(pool_connections=1, pool_maxsize=CONNECTIONS)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any) -> None:  # noqa: FBT001, FBT002 - the signature is requests'
        super().init_poolmanager(connections, maxsize, block, ssl_context=self._context, **pool_kwargs)

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Do not add the public CAs to the context, as requests would; the context requires a certificate by itself."""

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        kwargs["stream"] = True
        _time_is_up.at = time.monotonic() + TOTAL_SECONDS
        response = super().send(request, *args, **kwargs)
        try:
            response._content = _bounded(response.raw)  # noqa: SLF001 - the one place requests keeps a body that was read for it
        except BaseException:
            response.close()
            raise
        return response


class _BoundedSocket(ssl.SSLSocket):
    """Reads until the time of the thread's request is up: the headers drip in here too, without an end if need be."""

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        left = _time_is_up.at - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer took too long")
        self.settimeout(min(READ_SECONDS, left))
        return super().recv_into(*args, **kwargs)


def _bounded(raw: Any) -> bytes:
    body = bytearray()
    while chunk := raw.read1(65536):
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise requests.exceptions.ContentDecodingError("the answer is too long")
    return bytes(body)


def _trusting(ca_pem: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # requires a certificate and checks the name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = _BoundedSocket
    try:
        context.load_verify_locations(cadata=ca_pem)
    except ssl.SSLError as error:
        raise InvalidRequest(
            "TARGET_SETTINGS_INVALID", "The target's CA cannot be read as PEM certificates."
        ) from error
    return context
