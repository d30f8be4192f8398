"""Who the broker is at Azure: a credential of azure-identity, or a token from a file, held to one vault's scope."""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import requests
from azure.core.credentials import AccessToken
from azure.core.exceptions import AzureError, ClientAuthenticationError
from azure.core.pipeline.transport import RequestsTransport
from azure.identity import (
    CertificateCredential,
    ClientAssertionCredential,
    ClientSecretCredential,
    CredentialUnavailableError,
    ManagedIdentityCredential,
    WorkloadIdentityCredential,
)

from broker.core.errors import BrokerError, Unavailable, WrongState
from broker.core.reasons import Reason
from broker.targets import https
from broker.targets.azure_key_vault import refusals
from broker.targets.azure_key_vault.clouds import Place
from broker.targets.azure_key_vault.settings import AzureKeyVaultSettings
from broker.targets.token import read_credential, read_token

_ERROR_CODE = re.compile(r"AADSTS[0-9]{4,10}")


for _name in ("azure", "msal"):  # they would log requests, and at some levels what is in them
    _logger = logging.getLogger(_name)
    _logger.setLevel(logging.CRITICAL + 1)
    _logger.propagate = False


class Login(Protocol):
    """What azure-identity's credentials have in common."""

    def get_token(self, *scopes: str, claims: str | None = None, **options: Any) -> AccessToken:
        """A token, from memory while it is good."""


class PinnedCredential:
    """Gives tokens for one scope and from one tenant, whatever a challenge asks for (BY-04)."""

    def __init__(self, settings: AzureKeyVaultSettings, place: Place, credentials: Path, ca_pem: str = "") -> None:
        """``ca_pem``: the CAs of the login server; "" is the system's, whatever the environment says."""
        self._ca_pem = ca_pem
        self._settings = settings
        self._place = place
        self._folder = credentials / settings.host
        self._lock = threading.Lock()
        self._login: tuple[bytes, Login] | None = None  # with the digest of the file that it was made of

    def __repr__(self) -> str:
        return f"PinnedCredential({self._settings.credential}, {self._place.host})"

    def get_token(self, *scopes: str, claims: str | None = None, tenant_id: str | None = None, **_: Any) -> AccessToken:
        """As azure-core's ``TokenCredential`` has it; raises ``BrokerError`` only."""
        place, tenant = self._place, self._settings.tenant_id
        if place.private:
            return AccessToken(self._bearer(), int(time.time()))  # over at once: the file is read for each request
        if scopes != (place.scope,) or (tenant and tenant_id not in {None, tenant}):
            raise refusals.challenge(place, "of another tenant or for another service")
        try:
            return self._current().get_token(place.scope, claims=claims, enable_cae=True)
        except CredentialUnavailableError as error:
            raise WrongState(
                Reason.TARGET_CREDENTIAL_UNUSABLE,
                f"This host has no {self._settings.credential} that could give a token for {place.host}; check that "
                "the identity is assigned to it.",
            ) from error
        except ClientAuthenticationError as error:
            found = _ERROR_CODE.search(str(error.message))
            # Without a code it is not Entra ID's answer, but what azure-identity makes of not having got one.
            raise refusals.login_refused(place, found[0]) if found else self._no_answer(error) from error
        except (AzureError, OSError, ValueError) as error:
            raise self._no_answer(error) from error

    def _bearer(self) -> str:
        if self._settings.file:
            return read_token(self._folder, self._settings.file)
        assert self._place.private is not None  # noqa: S101 - only a private place is shown a token of its own
        file = self._place.private.token_file
        return read_token(file.parent, file.name)

    def _current(self) -> Login:
        """The credential for what its file holds now; one that was made before keeps its tokens."""
        kind = self._settings.credential
        content = self._read() if kind in {"client-certificate", "client-secret"} else b""
        digest = hashlib.sha256(content).digest()
        with self._lock:
            if self._login is None or self._login[0] != digest:
                self._login = (digest, self._make(content))
            return self._login[1]

    def _read(self) -> bytes:
        return read_credential(self._folder, self._settings.file)

    def _make(self, content: bytes) -> Login:
        settings = self._settings
        known: dict[str, Any] = {
            "tenant_id": settings.tenant_id,
            "client_id": settings.client_id,
            "authority": self._place.logins[0],
            "disable_instance_discovery": True,  # the authority is from our own list
            **_pipeline(_Transport(session=self._session(), session_owner=False)),
        }
        makers: dict[str, Callable[[], Login]] = {
            "workload-identity": lambda: self._federated(known),
            "client-certificate": lambda: CertificateCredential(certificate_data=content, **known),
            "client-secret": lambda: ClientSecretCredential(client_secret=content.decode("ascii").strip(), **known),
            # The platform's own endpoint on this very host, which is plain HTTP on most.
            "managed-identity": lambda: ManagedIdentityCredential(
                client_id=settings.client_id or None,
                **_pipeline(_Transport(use_env_settings=False, connection_timeout=2, read_timeout=5)),
            ),
        }
        try:
            return makers[settings.credential]()
        except ValueError as error:
            raise WrongState(
                Reason.TARGET_CREDENTIAL_UNUSABLE,
                f"The {settings.credential} for {self._place.host} cannot be used: its file does not hold what it "
                "should (a certificate and its RSA key in PEM, or one secret), or the environment names none.",
            ) from error

    def _session(self) -> requests.Session:
        return https.session(https.trusting(self._ca_pem), f"https://{self._place.logins[0]}/")

    def _federated(self, known: dict[str, Any]) -> Login:
        """A token of another issuer: from the file that is named, or from where Kubernetes has put it."""
        if not self._settings.file:
            return WorkloadIdentityCredential(**known)
        return ClientAssertionCredential(func=lambda: self._read().decode("ascii").strip(), **known)

    def _no_answer(self, error: Exception) -> BrokerError:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return WrongState(
                Reason.TARGET_TLS_UNTRUSTED,
                f"The certificate of {', '.join(self._place.logins[:1])} is not from a CA that this host trusts; no "
                "credential was sent.",
            )
        return Unavailable(
            Reason.TARGET_UNREACHABLE,
            f"No token could be had for {self._place.host}: {', '.join(self._place.logins[:1]) or 'its issuer'} does "
            "not answer as it should; check that this host may connect to it.",
        )


class _Transport(RequestsTransport):  # type: ignore[misc]  # loaded in a way that hides its type
    """Never sleeps longer than the whole may take."""

    def sleep(self, duration: float) -> None:
        if duration >= min(https.left(), refusals.MAX_WAIT_SECONDS):
            raise requests.Timeout("the wait is too long")
        super().sleep(duration)


def _pipeline(transport: RequestsTransport) -> dict[str, Any]:
    return {"transport": transport, "retry_total": 1, "retry_backoff_max": 1}
