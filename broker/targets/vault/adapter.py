"""hvac's way to one Vault or OpenBao server, with its CA pinned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import requests
import urllib3
from hvac.adapters import RawAdapter

from broker.core.errors import BrokerError
from broker.targets.https import CONNECT_SECONDS, READ_SECONDS, session, trusting
from broker.targets.vault import refusals
from broker.targets.vault.settings import VaultSettings
from broker.tls_client import cause


class Adapter(RawAdapter):  # type: ignore[misc]  # hvac has no types
    """What hvac's calls go through: a call gives the ``data`` of its answer, {} when it has none, None for 404.

    Thread-safe, over connections that are kept. Raises only ``BrokerError``. hvac's Client would read VAULT_* variables
    and ~/.vault-token; an adapter takes everything from here.
    """

    def __init__(self, settings: VaultSettings, token: Callable[[], str]) -> None:
        super().__init__(
            base_uri=settings.address,
            session=session(trusting(settings.ca_pem), f"{settings.address}/"),
            namespace=settings.namespace or None,
            timeout=(CONNECT_SECONDS, READ_SECONDS),
            allow_redirects=False,
            strict_http=True,  # lists by GET: proxies before a server know no LIST
        )
        self._mount = settings.mount
        self._host = settings.host
        self._read_token = token

    def request(self, method: str, url: str, **content: Any) -> dict[str, Any] | None:
        """The one request that hvac's every call is; the token is read for each."""
        token = self._read_token()
        content |= {"headers": {"X-Vault-Token": token}, "raise_exception": False}
        try:
            response = super().request(method, url, **content)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise self._broken(error) from error
        path = url.removeprefix("/v1/").removeprefix(f"{self._mount}/")
        return refusals.opened(response.status_code, response.content, self._mount, path, self._host, token)

    def _broken(self, error: Exception) -> BrokerError:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return refusals.untrusted(self._host, cause(error))
        slow = isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError)
        why = cause(error)
        return refusals.unreachable(
            self._host, "did not answer in time" if slow else f"cannot be reached{f' ({why})' if why else ''}"
        )
