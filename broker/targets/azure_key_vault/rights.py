"""The least that the broker's identity must be allowed, and how to find out without changing anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from broker.core.errors import WrongState
from broker.core.reasons import Reason
from broker.targets.azure_key_vault import refusals
from broker.targets.azure_key_vault.clouds import Place
from broker.targets.azure_key_vault.settings import AzureKeyVaultSettings

if TYPE_CHECKING:
    from broker.targets.azure_key_vault.connection import Connection

NOBODY = "broker-check"
NO_VERSION = "0" * 32


def check(connection: Connection, settings: AzureKeyVaultSettings, place: Place) -> None:
    """Return if each of the requests that importing and proving take is let through to its own refusal.

    The service looks at rights before it looks at what is asked, so a version that cannot be, or an import without a
    key, comes back as 404 or 400 when the right is there, and as 403 when it is not. ``TARGET_DENIED`` lists them.
    """
    missing = [right for right, method, path, body in _tries(settings, place) if _is_missing(
        connection, place, right, method, path, body
    )]  # fmt: skip
    if missing:
        raise refusals.lacking(place, missing)


def _tries(settings: AzureKeyVaultSettings, place: Place) -> list[tuple[str, str, str, dict[str, Any] | None]]:
    nothing = f"/keys/{NOBODY}/{NO_VERSION}"
    use = {"alg": "RSA-OAEP-256", "value": "AA"}
    tries: list[tuple[str, str, str, dict[str, Any] | None]] = [
        ("get", "GET", f"/keys/{settings.kek_name}/{settings.kek_version or NO_VERSION}", None),
        ("list", "GET", f"/keys/{NOBODY}/versions", None),
        ("import", "PUT", f"/keys/{NOBODY}", {}),
        ("update", "PATCH", nothing, {}),
        ("sign", "POST", f"{nothing}/sign", {"alg": "ES256", "value": "AA"}),
        ("decrypt", "POST", f"{nothing}/decrypt", use),
    ]
    if place.tier == "managed-hsm":
        tries.append(("encrypt", "POST", f"{nothing}/encrypt", use))
    return tries


def _is_missing(
    connection: Connection, place: Place, right: str, method: str, path: str, body: dict[str, Any] | None
) -> bool:
    with connection.asking(right, NOBODY):
        answer = connection.send(method, path, body)
    if answer is None or answer.status in {400, 404}:
        return False
    refusal = refusals.refusal(answer, place, right, NOBODY)
    if answer.status == 403 and isinstance(refusal, WrongState) and refusal.reason != Reason.TARGET_FIREWALL:
        return refusal.reason == Reason.TARGET_DENIED
    raise refusal
