"""Azure's client, held to one server: its challenges checked, its uploads never repeated, its errors told as ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

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

from broker import tls_client
from broker.core.armour import certificates
from broker.core.errors import BrokerError, WrongState
from broker.core.reasons import Reason
from broker.targets import https
from broker.targets.azure_key_vault import refusals
from broker.targets.azure_key_vault.challenge import check_challenge
from broker.targets.azure_key_vault.clouds import Place
from broker.targets.azure_key_vault.credential import PinnedCredential
from broker.targets.azure_key_vault.settings import AzureKeyVaultSettings

NO_REPEAT = 0
"""For what makes something new each time it arrives: it is sent once, and reading back decides (BY-15)."""

MAX_VERSIONS = 1000
_VERSION = re.compile(r"[0-9a-f]{32}", re.ASCII)
_MALFORMED = (DecodeError, ValueError, TypeError, KeyError, AttributeError, RecursionError)


def connect(settings: AzureKeyVaultSettings, place: Place, credentials: Path) -> Connection:
    """Ready to ask; nothing is sent yet."""
    return Connection(place, PinnedCredential(settings, place, credentials))


class Connection:
    """Azure's key client for one place, thread-safe. Inside ``asking`` only ``BrokerError`` comes out of it."""

    def __init__(self, place: Place, credential: PinnedCredential) -> None:
        self._place = place
        self._transport = _Transport(place, https.session(https.trusting(_ca_pem(place)), f"{place.url}/"))
        self.keys = _Keys(
            place.url,
            credential,
            transport=self._transport,
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
    def asking(self, right: str, name: str, about: str = "", seconds: float = https.TOTAL_SECONDS) -> Iterator[None]:
        """Requests that take ``right`` on the key ``name``: bounded together, and told in our words when they fail.

        ``about``: what is sent, for the sentence that says it was refused.
        """
        with https.together(seconds):
            try:
                yield
            except BrokerError:
                raise
            except (ServiceRequestError, ServiceResponseError) as error:
                raise self._broken(error) from error
            except HttpResponseError as error:
                if isinstance(error, DecodeError) and (error.status_code or 0) < 300:
                    raise refusals.malformed(self._place, "JSON") from error
                raise refusals.refusal(answer_of(error), self._place, right, name, about) from error
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

    def upload(self, name: str, jwk: dict[str, Any], before: set[str]) -> None:
        """Import; what the vault answers is not looked at, since reading back decides (BY-15).

        It is sent once. Only when the vault has said that it is too busy, has been waited for as it asked, and then
        still has no more than ``before``, it is sent a second time.
        """
        try:
            self._send_key(name, jwk)
        except HttpResponseError as error:
            answer = answer_of(error)
            if answer.status != 429 or answer.retry_after is None:
                raise
            self._transport.sleep(answer.retry_after)
            if {one.version for one in self.listed(name)} != before:
                raise
            self._send_key(name, jwk)

    def _send_key(self, name: str, jwk: dict[str, Any]) -> None:
        self.keys.import_key(name, JsonWebKey(**jwk), hardware_protected=True, enabled=True, retry_total=NO_REPEAT)

    def send(self, method: str, path: str, body: dict[str, Any] | None = None) -> refusals.Answer | None:
        """One request by hand, never repeated; None when it was granted, else the refusal as it came."""
        request = HttpRequest(method, path, json=body) if body is not None else HttpRequest(method, path)
        response = self.keys.send_request(request, retry_total=NO_REPEAT)
        if response.status_code < 300:
            return None
        return refusals.answered(response.status_code, response.content, response.headers)

    def wait(self, seconds: float) -> None:
        """Within the time that the requests have together."""
        self._transport.sleep(seconds)

    def _broken(self, error: Exception) -> BrokerError:
        said = str(error)
        if "CERTIFICATE_VERIFY_FAILED" in said:
            return refusals.untrusted(self._place, tls_client.cause(error))
        if "No connection adapters" in said:
            return WrongState(
                Reason.TARGET_REFUSED,
                f"The vault at {self._place.host} points to another server; that one is not asked.",
            )
        slow = "timed out" in said or "too long" in said or "time for the whole" in said
        why = tls_client.cause(error)
        return refusals.unreachable(
            self._place, "did not answer in time" if slow else f"cannot be reached{f' ({why})' if why else ''}"
        )


def answer_of(error: Any) -> refusals.Answer:
    """The refusal that Azure's client raised, as it came."""
    response = error.response
    if response is None:
        return refusals.Answer(status=error.status_code or 0, code="", inner="", retry_after=None)
    return refusals.answered(response.status_code, response.content, response.headers)


def _ca_pem(place: Place) -> str:
    if place.private is None:
        return ""
    try:
        return certificates(place.private.ca_file.read_bytes())
    except (OSError, ValueError) as error:
        why = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
        raise WrongState(
            Reason.TARGET_TLS_UNTRUSTED,
            f"The ca_file of {place.host} in the broker's configuration {why}; nothing was sent.",
        ) from error


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

    def make_kek(self, name: str, bits: int, tags: dict[str, str]) -> KeyVaultKey:
        """An RSA key in the vault's HSM that can only be imported for."""
        return self.create_rsa_key(
            name, size=bits, hardware_protected=True, key_operations=["import"], tags=tags, retry_total=NO_REPEAT
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
                Reason.TARGET_REFUSED,
                f"The vault at {self._place.host} points to another server; that one is not asked.",
            )

    def on_response(self, request: PipelineRequest[Any], response: PipelineResponse[Any, Any]) -> None:  # noqa: ARG002 - the signature is azure-core's
        challenge = response.http_response.headers.get("WWW-Authenticate")
        if response.http_response.status_code == 401 and challenge is not None:
            check_challenge(challenge, self._place)
