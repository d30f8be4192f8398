"""Requests to one Vault or OpenBao server, with its CA pinned."""

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


class Transport:
    """Requests to one server, thread-safe, over connections that are kept. Raises only ``BrokerError``."""

    def __init__(self, settings: VaultSettings, token: Callable[[], str]) -> None:
        self._mount = settings.mount
        self._host = settings.host
        self._token = token
        # hvac's Client would read VAULT_* variables; its adapter takes everything from here.
        self._adapter = RawAdapter(
            base_uri=settings.address,
            session=session(trusting(settings.ca_pem), f"{settings.address}/"),
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
        try:
            response = self._adapter.request(method, f"/v1/{url}", headers={"X-Vault-Token": token}, **content)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise self._broken(error) from error
        return refusals.opened(response.status_code, response.content, self._mount, path, self._host, token)

    def _broken(self, error: Exception) -> BrokerError:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return refusals.untrusted(self._host, cause(error))
        slow = isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError)
        why = cause(error)
        return refusals.unreachable(
            self._host, "did not answer in time" if slow else f"cannot be reached{f' ({why})' if why else ''}"
        )
