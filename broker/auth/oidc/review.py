"""Asking a Kubernetes cluster whether a token still stands (TokenReview of authentication.k8s.io/v1).

A signature tells nothing of a pod or a service account that is gone since; the cluster's API server does.
"""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

from broker import secret_files
from broker.auth.oidc.compact import strict_object
from broker.auth.oidc.fetch import Fault, Fetcher, NotFetchedError
from broker.auth.oidc.refusals import refused
from broker.auth.oidc.resolve import Ask, system
from broker.core.armour import certificates
from broker.core.errors import BrokerError, Exhausted, Unauthenticated, Unavailable
from broker.core.identity import Patience
from broker.core.reasons import Reason
from broker.core.trust import matching
from broker.core.trust.rules import ISSUER, MAX_TEXT

PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
SECONDS = 3.0
AT_ONCE = 8
"""Reviews of one cluster at a time; more logins wait for a place as long as their patience goes."""

PAUSES = (0.5, 1.0)
"""Seconds before a cluster that could not be asked is asked again."""

_TOKEN = re.compile(rb"[!-~]{1,8192}")
HostPort = Annotated[str, StringConstraints(max_length=260, pattern=r"^[a-z0-9][a-z0-9.-]*:[1-9][0-9]{0,4}$")]


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("the path must be absolute")
    return path


def _issuer(text: str) -> str:
    if len(text) > MAX_TEXT or not ISSUER.fullmatch(text):
        raise ValueError("the issuer is written as in the tokens, https://…")
    return text


Absolute = Annotated[Path, AfterValidator(_absolute)]


class TokenReviewConfig(BaseModel):
    """One ``[[oidc.token_review]]``: whose tokens, and the API server that is asked about them.

    ``host``: "host:port" of the API server, at whatever address. ``ca_file``: its CA, PEM. ``token_file``: the broker's
    own service account token, with the right to create tokenreviews (``system:auth-delegator``), in a file of mode 0600
    that is read for every review.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: Annotated[str, AfterValidator(_issuer)]
    host: HostPort
    ca_file: Absolute
    token_file: Absolute


class TokenReview:
    """The API server of one cluster."""

    def __init__(self, config: TokenReviewConfig, ask: Ask = system) -> None:
        self._config = config
        self._fetcher = Fetcher(frozenset({config.host}), ask)
        self._room = threading.BoundedSemaphore(AT_ONCE)

    def check(self, token: str, audience: str, subject: str, patience: Patience | None = None) -> None:
        """Return if the cluster vouches for the token, for this audience and as this subject.

        Unauthenticated ``TOKEN_REVIEW_FAILED``; Unavailable ``TOKEN_REVIEW_UNAVAILABLE`` when it cannot be asked, with
        patience a few times; Unauthenticated ``TOKEN_REVIEW_MISCONFIGURED`` when it does not let the broker ask.
        """
        status = self._told(token, audience, patience)
        user = status.get("user")
        found = {
            "authenticated": status.get("authenticated") is True,
            "audiences": audience in _texts(status.get("audiences")),
            "user": isinstance(user, dict) and user.get("username") == subject,
        }
        failed = [name for name, good in found.items() if not good]
        if failed:
            wanted = {"authenticated": "true", "audiences": audience, "user": subject}[failed[0]]
            told = user.get("username") if failed[0] == "user" and isinstance(user, dict) else status.get(failed[0])
            error = refused(Reason.TOKEN_REVIEW_FAILED, f"token review {failed[0]}", wanted, told)
            error.facts = {**error.facts, "issuer": self._config.issuer, "subject": subject}
            raise error

    def _told(self, token: str, audience: str, patience: Patience | None) -> dict[str, Any]:
        if patience is None:
            return self._status(token, audience, 0)
        try:
            with patience.aside():
                return self._insisting(token, audience, patience)
        except Exhausted as error:
            raise _unavailable(Fault("too many calls wait already")) from error

    def _insisting(self, token: str, audience: str, patience: Patience) -> dict[str, Any]:
        for pause in PAUSES:
            try:
                return self._status(token, audience, max(0.0, patience.until - time.monotonic()))
            except Unavailable:
                if time.monotonic() + pause >= patience.until or not patience.alive():
                    raise
            time.sleep(pause)
        return self._status(token, audience, max(0.0, patience.until - time.monotonic()))

    def _status(self, token: str, audience: str, wait: float) -> dict[str, Any]:
        """``wait``: seconds that a place among those that ask at a time is waited for."""
        asked = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        }
        if not self._room.acquire(timeout=wait):
            raise _unavailable(Fault("too many logins wait for it already"))
        try:
            url = f"https://{self._config.host}{PATH}"
            ca_pem, own = certificates(self._config.ca_file.read_bytes()), _own_token(self._config.token_file)
            answer = self._fetcher.post(url, ca_pem, time.monotonic() + SECONDS, own, json.dumps(asked).encode())
            status = strict_object(answer).get("status")
        except NotFetchedError as error:
            raise _unavailable(error.fault) from error
        except (OSError, ValueError) as error:
            raise _unavailable(Fault("its CA, the broker's token for it or its answer cannot be read")) from error
        finally:
            self._room.release()
        if not isinstance(status, dict):
            raise _unavailable(Fault("its answer is no review"))
        return status


def _own_token(file: Path) -> str:
    """The broker's token, of a private file (``secret_files``); ValueError when it cannot be had."""
    try:
        token = secret_files.line(secret_files.read(file, 16384)).strip()
    except secret_files.UnusableError as fault:
        raise ValueError(fault.why) from fault
    if not _TOKEN.fullmatch(token):
        raise ValueError("the token file does not hold one token and nothing else")
    return token.decode("ascii")


def _texts(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _unavailable(fault: Fault) -> BrokerError:
    error: BrokerError
    if fault.lasting:
        error = Unauthenticated(
            Reason.TOKEN_REVIEW_MISCONFIGURED,
            "The identity token's cluster does not let the broker ask it about the token; trying again will not help: "
            "tell an operator of the broker, whom the audit of this call shows the cause.",
        )
    else:
        error = Unavailable(
            Reason.TOKEN_REVIEW_UNAVAILABLE,
            "The identity token's cluster cannot be asked about it right now; try again.",
        )
    error.facts = {"claim": "token review", "claim_found": matching.shown(fault.text)}
    return error
