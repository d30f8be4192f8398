"""Azure's client, held to one server: its challenges checked, its uploads never repeated, its errors told as ours."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from azure.core.exceptions import (
    AzureError,
    DecodeError,
    HttpResponseError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.core.pipeline import PipelineRequest, PipelineResponse
from azure.core.pipeline.policies import RedirectPolicy, RetryPolicy, SansIOHTTPPolicy, UserAgentPolicy
from azure.core.pipeline.transport import RequestsTransport
from azure.core.rest import HttpRequest
from azure.keyvault.keys import JsonWebKey, KeyClient, KeyProperties, KeyVaultKey
from azure.keyvault.keys.crypto import CryptographyClient

from broker.core.errors import BrokerError, WrongState
from broker.targets import https
from broker.targets.azure_key_vault import refusals
from broker.targets.azure_key_vault.clouds import Place
from broker.targets.azure_key_vault.credential import PinnedCredential
from broker.targets.azure_key_vault.settings import AzureKeyVaultSettings

NO_REPEAT = 0
"""For what makes something new each time it arrives: it is sent once, and reading back decides (BY-15)."""

MAX_VERSIONS = 1000
_VERSION = re.compile(r"[0-9a-f]{32}", re.ASCII)
_AUTHORITY = re.compile(r"https://([a-z0-9.-]{1,253})/([0-9a-f-]{36})/?", re.ASCII)
_MALFORMED = (DecodeError, ValueError, TypeError, KeyError, AttributeError, RecursionError)

for _name in ("azure", "msal"):  # they would log requests, and at some levels what is in them
    _logger = logging.getLogger(_name)
    _logger.setLevel(logging.CRITICAL + 1)
    _logger.propagate = False


def connect(settings: AzureKeyVaultSettings, place: Place, credentials: Path) -> Connection:
    """Ready to ask; nothing is sent yet."""
    return Connection(place, PinnedCredential(settings, place, credentials))


class Connection:
    """Azure's key client for one place, thread-safe. Inside ``asking`` only ``BrokerError`` comes out of it."""

    def __init__(self, place: Place, credential: PinnedCredential) -> None:
        self._place = place
        ca_pem = place.private.ca_file.read_text("ascii") if place.private else ""
        self.keys = _Keys(
            place.url,
            credential,
            transport=_Transport(place, https.session(https.trusting(ca_pem), f"{place.url}/")),
            # Of what may be repeated, a broken connection is worth one more try, a busy vault a few.
            retry_policy=RetryPolicy(
                retry_total=3, retry_connect=0, retry_read=1, retry_backoff_factor=0.5, retry_backoff_max=4
            ),
            redirect_policy=RedirectPolicy.no_redirects(),
            custom_hook_policy=_Gate(place),
            user_agent_policy=UserAgentPolicy(user_agent="hsm-broker", user_agent_overwrite=True),
            # It wants a parent domain of the host, which a private vault need not have; the gate wants the host itself.
            verify_challenge_resource=not place.private,
        )

    @contextmanager
    def asking(self, right: str, name: str) -> Iterator[None]:
        """Requests that take ``right`` on the key ``name``: bounded together, and told in our words when they fail."""
        with https.together():
            try:
                yield
            except BrokerError:
                raise
            except (ServiceRequestError, ServiceResponseError) as error:
                raise self._broken(error) from error
            except HttpResponseError as error:
                if isinstance(error, DecodeError) and (error.status_code or 0) < 300:
                    raise refusals.malformed(self._place, "JSON") from error
                raise refusals.refusal(answer_of(error), self._place, right, name) from error
            except _MALFORMED as error:
                raise refusals.malformed(self._place, "what the API describes") from error
            except (AzureError, requests.RequestException) as error:
                raise self._broken(error) from error

    def listed(self, name: str) -> list[KeyProperties]:
        """What there is under ``name``, in the order of the vault's list; [] when there is nothing."""
        try:
            found = list(islice(self.keys.list_properties_of_key_versions(name), MAX_VERSIONS + 1))
        except ResourceNotFoundError:
            return []
        if len(found) > MAX_VERSIONS or not all(_VERSION.fullmatch(one.version or "") for one in found):
            raise ValueError("a list of versions that cannot be")
        return found

    def read(self, name: str, version: str) -> KeyVaultKey | None:
        """This version ("": the current one); None when it is not there, or disabled and therefore not shown."""
        try:
            return self.keys.get_key(name, version or None)
        except ResourceNotFoundError:
            return None
        except HttpResponseError as error:
            if answer_of(error).says("KeyDisabled"):
                return None
            raise

    def upload(self, name: str, jwk: dict[str, Any]) -> None:
        """Import, once; what the vault answers is not looked at, since reading back decides."""
        self.keys.import_key(name, JsonWebKey(**jwk), hardware_protected=True, enabled=True, retry_total=NO_REPEAT)

    def send(self, method: str, path: str, body: dict[str, Any] | None = None) -> refusals.Answer | None:
        """One request by hand, never repeated; None when it was granted, else the refusal as it came."""
        request = HttpRequest(method, path, json=body) if body is not None else HttpRequest(method, path)
        response = self.keys.send_request(request, retry_total=NO_REPEAT)
        if response.status_code < 300:
            return None
        return refusals.answered(response.status_code, response.content, response.headers)

    def _broken(self, error: Exception) -> BrokerError:
        said = str(error)
        if "CERTIFICATE_VERIFY_FAILED" in said:
            return refusals.untrusted(self._place)
        if "No connection adapters" in said:
            return WrongState(
                "TARGET_REFUSED", f"The vault at {self._place.host} points to another server; that one is not asked."
            )
        slow = "timed out" in said or "too long" in said or "time for the whole" in said
        return refusals.unreachable(self._place, "did not answer in time" if slow else "cannot be reached")


def answer_of(error: Any) -> refusals.Answer:
    """The refusal that Azure's client raised, as it came."""
    response = error.response
    if response is None:
        return refusals.Answer(status=error.status_code or 0, code="", inner="", retry_after=None)
    return refusals.answered(response.status_code, response.content, response.headers)


class _RemoteOnly(CryptographyClient):
    """Lets the vault compute, always: proof by use is worth nothing when this process did it."""

    def _initialize(self, **_: Any) -> None:
        """Do not fetch the public half, with which the client would do what it can by itself."""


class _Keys(KeyClient):
    def using(self, name: str, version: str) -> Any:
        """A ``CryptographyClient`` for this very version, on the connections of this client; words are algorithms."""
        return _RemoteOnly(
            f"{self.vault_url}/keys/{name}/{version}",
            object(),  # type: ignore[arg-type]  # as get_cryptography_client: the shared pipeline has the credential
            generated_client=self._client,
            generated_models=self._models,
        )

    def make_kek(self, name: str, bits: int) -> KeyVaultKey:
        """An RSA key in the vault's HSM that can only be imported for."""
        return self.create_rsa_key(
            name, size=bits, hardware_protected=True, key_operations=["import"], retry_total=NO_REPEAT
        )


class _Transport(RequestsTransport):  # type: ignore[misc]  # loaded in a way that hides its type
    """Waits a little when a vault asks for it, and refuses to wait long."""

    def __init__(self, place: Place, session: Any) -> None:
        super().__init__(session=session, session_owner=False)
        self._place = place

    def sleep(self, duration: float) -> None:
        if duration > refusals.MAX_WAIT_SECONDS or duration >= https.left():
            raise refusals.throttled(self._place, duration)
        super().sleep(duration)


class _Gate(SansIOHTTPPolicy[Any, Any]):
    """Stands between Azure's client and the wire.

    Nothing leaves for another server, and no challenge reaches the client, which would keep it, before it has been
    found to be one for this vault (BY-04).
    """

    def __init__(self, place: Place) -> None:
        self._place = place

    def on_request(self, request: PipelineRequest[Any]) -> None:
        if not str(request.http_request.url).startswith(f"{self._place.url}/"):
            raise WrongState(
                "TARGET_REFUSED", f"The vault at {self._place.host} points to another server; that one is not asked."
            )

    def on_response(self, request: PipelineRequest[Any], response: PipelineResponse[Any, Any]) -> None:  # noqa: ARG002 - the signature is azure-core's
        if response.http_response.status_code == 401:
            check_challenge(response.http_response.headers.get("WWW-Authenticate", ""), self._place)


def check_challenge(header: str, place: Place) -> None:
    """Return if a token for ``place`` is what this challenge asks for; else ``TARGET_CHALLENGE_REFUSED``.

    The header is taken apart as Azure's client does it, so that both read the same.
    """
    scheme, _, parameters = header.strip().partition(" ")
    found: dict[str, str] = {}
    claims = False
    for item in parameters.split(","):
        claims = claims or "claims=" in item
        name, _, value = item.partition("=")
        name, value = name.strip(' "'), value.strip(' "')
        if name in found or (name in _NAMED and "=" in value):
            raise refusals.challenge(place, "in two ways at once")
        if name in _NAMED:
            found[name] = value
    if scheme.lower() != "bearer":
        raise refusals.challenge(place, "of a kind that is not known")
    _check_issuer(found, place)
    _check_resource(found, place, optional=claims)


_NAMED = frozenset({"authorization", "authorization_uri", "resource", "scope"})


def _check_issuer(found: dict[str, str], place: Place) -> None:
    given = [found[name] for name in ("authorization", "authorization_uri") if name in found]
    if not given:
        raise refusals.challenge(place, "without saying from whom")
    for one in given if place.logins else ():
        authority = _AUTHORITY.fullmatch(one.lower())
        if authority is None or authority[1] not in place.logins:
            raise refusals.challenge(place, "from an authority that is not its cloud's")


def _check_resource(found: dict[str, str], place: Place, *, optional: bool) -> None:
    given = [found[name] for name in ("resource", "scope") if name in found]
    if not given and not optional:
        raise refusals.challenge(place, "without saying for what")
    for one in given:
        if not _is_for(one.removesuffix("/.default").removesuffix("/"), place):
            raise refusals.challenge(place, "for another service")


def _is_for(resource: str, place: Place) -> bool:
    if place.private is None or resource == place.resource:
        return resource == place.resource
    authority = urlsplit(resource).netloc  # of a private cloud: the domain that its vaults lie in
    return bool(authority) and place.host.removesuffix(":443").endswith(f".{authority}")
