"""What a server's answer means: its data, or one clear refusal.

The list in ``errors`` is read before the status, since several plain refusals arrive as 500.
"""

from __future__ import annotations

import json
import re
from typing import Any

from broker.core.errors import BrokerError, Unavailable, WrongState
from broker.core.reasons import Reason
from broker.targets.vault.policy import lines

MAX_QUOTE = 160


def opened(status: int, body: bytes, mount: str, path: str, host: str, token: str) -> dict[str, Any] | None:
    """The ``data`` of a good answer ({} when it has none), None for 404 with nothing to say, else the refusal."""
    if status == 204:
        return {}
    answer = _decoded(body)
    if answer is None or 300 <= status < 400:
        raise _foreign(status, host)
    if status < 300:
        return _data(answer, status, host)
    said = _said(answer, token)
    if status == 404 and not said:
        return None
    raise _refusal(status, said, mount, path, host)


def unreachable(host: str, why: str) -> Unavailable:
    """No answer, or none from a server that is ready."""
    return Unavailable(
        Reason.TARGET_UNREACHABLE,
        f"The target at {host} {why}; check that it runs and that this host may connect to it.",
    )


def untrusted(host: str, why: str) -> WrongState:
    """The TLS certificate is not what was registered (BY-01, BY-12)."""
    return WrongState(
        Reason.TARGET_TLS_UNTRUSTED,
        f"The certificate of {host} is not one from the registered CA, in date and for that name ({why}); nothing was "
        "sent. Find out who answers there before you register it with another CA.",
    )


def no_transit(mount: str, host: str) -> WrongState:
    """Whatever is mounted there, it is not a transit engine that can import."""
    return WrongState(
        Reason.TARGET_MOUNT_MISSING,
        f"There is no transit engine at {mount} on {host}; check the mount and the namespace. Those of a registered "
        "target are fixed: if they are wrong, register it under another name.",
    )


def malformed(host: str, what: str) -> WrongState:
    """A good status with a body that does not follow the API."""
    return WrongState(
        Reason.TARGET_REFUSED, f"The target at {host} answered without {what}; check that it is Vault or OpenBao."
    )


def _decoded(body: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _data(answer: dict[str, Any], status: int, host: str) -> dict[str, Any]:
    data = answer.get("data") or {}
    if not isinstance(data, dict):
        raise _foreign(status, host)
    return data


def _said(answer: dict[str, Any], token: str) -> str:
    """The server's short error strings on one line, or "" when it sent none. Never the token, should it echo it."""
    errors = answer.get("errors")
    text = "; ".join(str(error) for error in errors) if isinstance(errors, list) else ""
    if token in text:
        return "(an error that quotes the token)"
    text = re.sub(r"\d+ errors? occurred:", "", text).replace("*", " ")
    return " ".join(re.sub(r"[^ -~]", " ", text).split())[:MAX_QUOTE]


def _foreign(status: int, host: str) -> Unavailable:
    if 300 <= status < 400:
        return unreachable(
            host, "redirects (a standby does that) and redirects are not followed; register the active node"
        )
    return unreachable(host, f"answered with status {status} and something that is not the Vault API (a proxy?)")


def _refusal(status: int, said: str, mount: str, path: str, host: str) -> BrokerError:
    if status == 503 and "sealed" in said.lower():
        return Unavailable(Reason.TARGET_SEALED, f"The target at {host} is sealed; unseal it and try again.")
    if status == 429:
        return Unavailable(Reason.TARGET_THROTTLED, f"The target at {host} limits the rate; try again later.")
    if status in {502, 503, 504}:
        return unreachable(host, f"is not ready: {said}")
    if status in {401, 403}:
        return _denied(mount, path, host)
    return _refused(status, said, mount, host)


def _refused(status: int, said: str, mount: str, host: str) -> WrongState:
    if "no handler for route" in said or said == "namespace not found":
        return no_transit(mount, host)
    if "cannot be used with an existing key" in said:
        return WrongState(Reason.TARGET_NAME_TAKEN, f"A key of this name exists at {host}; choose another name there.")
    return WrongState(Reason.TARGET_REFUSED, f"The target at {host} refused: {said or f'status {status}'}.")


def _denied(mount: str, path: str, host: str) -> WrongState:
    return WrongState(
        Reason.TARGET_DENIED,
        f"The target at {host} does not accept the token, or the token's policy lacks: {lines(mount, path)} "
        f"(or there is no transit engine at {mount}).",
    )
