"""What goes wrong at a vault, as one clear sentence each, with the role or the command that helps.

Of the service's own text only the short codes are read; nothing of it is quoted beyond them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from broker.core.errors import BrokerError, Unavailable, WrongState
from broker.core.reasons import Reason
from broker.targets.azure_key_vault.clouds import Place

_CODE = re.compile(r"[A-Za-z][A-Za-z0-9]{0,63}", re.ASCII)
OUT_OF_USE = {
    "KeyDisabled": ("is disabled", "--enabled true"),
    "KeyExpired": ("has expired", "--expires with a later date"),
    "KeyNotYetValid": ("is not valid yet", "--not-before with an earlier date"),
}
"""What keeps a key from being used, by the service's code, and the option that changes it."""

MAX_WAIT_SECONDS = 5.0
"""A longer Retry-After is not waited for, but told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A refusal as it came: the status and, from its body, the code and the inner code ("" where there is none)."""

    status: int
    code: str
    inner: str
    retry_after: float | None  # seconds

    @property
    def short(self) -> str:
        """For a sentence: the most telling code there is."""
        return self.inner or self.code or f"status {self.status}"

    def says(self, *codes: str) -> bool:
        """Whether one of these is its code or its inner code."""
        return bool({self.code, self.inner} & set(codes))


def answered(status: int, body: bytes, headers: Mapping[str, str]) -> Answer:
    """Read a refusal of the documented form, ``{"error": {"code", "message", "innererror": {"code"}}}``."""
    try:
        error = json.loads(body)["error"]
        inner = error.get("innererror") or {}
        code, inner_code = error.get("code"), inner.get("code")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        code = inner_code = None  # a proxy's page, or no body: the status alone speaks
    return Answer(status=status, code=_short(code), inner=_short(inner_code), retry_after=_seconds(headers))


def refusal(answer: Answer, place: Place, right: str, name: str, about: str = "") -> BrokerError:
    """What ``answer`` to a request that takes ``right`` ("import") on the key ``name`` means.

    ``about``: what was sent, in words that help to find out why it would not do.
    """
    if answer.status == 429 or (answer.status == 503 and answer.retry_after is not None):
        return throttled(place, answer.retry_after)
    telling: dict[int, Callable[[], BrokerError]] = {
        401: lambda: _unknown_caller(place),
        403: lambda: _forbidden(answer, place, right, name),
        404: lambda: missing(place, name),
        409: lambda: _conflict(answer, place, name),
    }
    if answer.status in telling:
        return telling[answer.status]()
    if 300 <= answer.status < 400:
        return unreachable(place, "redirects, and redirects are not followed")
    if answer.status == 408 or answer.status >= 500:
        return unreachable(place, f"is not ready ({answer.short})")
    return WrongState(
        Reason.TARGET_REFUSED, f"The vault at {place.host} refused to {right} the key {name} ({answer.short}){about}."
    )


def deleted(place: Place, name: str, answer: Answer | None) -> str:
    """What may still be there of a key that does not show; ``answer``: the refusal to tell, None when it was told."""
    where = which(place)
    if answer is not None:
        return (
            f"whether it is deleted at {place.host} and can be recovered does not show ({answer.short}); az keyvault "
            f"key show-deleted {where} --name {name} tells an operator who may look."
        )
    return (
        f"it is deleted at {place.host} and not purged: az keyvault key recover {where} --name {name} brings it back, "
        f"az keyvault key purge {where} --name {name} ends it (where purge protection is on, once its days are over)."
    )


def which(place: Place) -> str:
    """The option that names the place to Azure's command line."""
    return f"--hsm-name {place.name}" if place.tier == "managed-hsm" else f"--vault-name {place.name}"


def missing(place: Place, name: str) -> WrongState:
    """Nothing of that name, or no such version of it."""
    return WrongState(Reason.REMOTE_KEY_MISSING, f"The vault at {place.host} has no such version of the key {name}.")


def throttled(place: Place, seconds: float | None) -> Unavailable:
    """Too many requests; ``retry_after_seconds`` in the metadata says when it will do again, where the vault did."""
    when = f"in {seconds:.0f} s" if seconds is not None else "in a minute"
    metadata = {} if seconds is None else {"retry_after_seconds": f"{seconds:.0f}"}
    return Unavailable(
        Reason.TARGET_THROTTLED, f"The vault at {place.host} limits the rate of requests; try again {when}.", **metadata
    )


def unreachable(place: Place, why: str) -> Unavailable:
    """No answer, or none from a server that is ready."""
    return Unavailable(
        Reason.TARGET_UNREACHABLE,
        f"The vault at {place.host} {why}; check its name, its network settings, and that this host may connect to it.",
    )


def untrusted(place: Place, why: str) -> WrongState:
    """The TLS certificate is not what it has to be (BY-01)."""
    whose = "its ca_file in the broker's configuration" if place.private else "the CAs that this host trusts"
    return WrongState(
        Reason.TARGET_TLS_UNTRUSTED,
        f"The certificate of {place.host} is not one from {whose}, in date and for that name ({why}); nothing was "
        "sent. Find out who answers there.",
    )


def malformed(place: Place, what: str) -> WrongState:
    """A good status with a body that does not follow the API."""
    return WrongState(
        Reason.TARGET_REFUSED, f"The vault at {place.host} answered without {what}; check that it is a Key Vault."
    )


def challenge(place: Place, what: str) -> WrongState:
    """The vault asks for a token that is not for it, or from somebody who does not give them (BY-04)."""
    return WrongState(
        Reason.TARGET_CHALLENGE_REFUSED,
        f"{place.host} asks for a token {what}; no token was sent. Find out who answers there, and which tenant the "
        "vault belongs to.",
    )


def login_refused(place: Place, code: str) -> WrongState:
    """Microsoft Entra ID does not give a token for this credential."""
    return WrongState(
        Reason.TARGET_CREDENTIAL_UNUSABLE,
        f"Microsoft Entra ID gives the broker no token for {place.host} ({code}); check tenant_id, client_id and that "
        "the application there has this certificate, secret or federated credential, and that it has not expired.",
    )


def lacking(place: Place, rights: list[str]) -> WrongState:
    """The broker's identity is known and may not do all it takes."""
    words = ", ".join(rights)
    if place.tier == "managed-hsm":
        way = (
            "give it the role Managed HSM Crypto User: az keyvault role assignment create "
            f'--hsm-name {place.name} --role "Managed HSM Crypto User" --scope /keys --assignee <client id>'
        )
    else:
        way = (
            'give it the role Key Vault Crypto Officer (az role assignment create --role "Key Vault Crypto Officer") '
            f"or, where access policies rule, az keyvault set-policy --name {place.name} "
            f"--key-permissions {' '.join(rights)} --spn <client id>"
        )
    return WrongState(
        Reason.TARGET_DENIED, f"The broker's identity lacks rights on keys at {place.host} ({words}); {way}."
    )


def _unknown_caller(place: Place) -> WrongState:
    whose = "the token in its file" if place.private else "the token of the broker's identity"
    return WrongState(
        Reason.TARGET_DENIED,
        f"The vault at {place.host} does not accept {whose}; check that it is of the vault's tenant.",
    )


def _forbidden(answer: Answer, place: Place, right: str, name: str) -> BrokerError:
    if answer.says("ForbiddenByFirewall", "ForbiddenByConnection"):
        return WrongState(
            Reason.TARGET_FIREWALL,
            f"The firewall of {place.host} does not let this host in; add its address (az keyvault network-rule add "
            f"--name {place.name} --ip-address …) or use a private endpoint.",
        )
    for code, (state, option) in OUT_OF_USE.items():
        if answer.says(code):
            return _out_of_use(place, right, name, state, option)
    if answer.says("KeyOperationForbidden"):
        return WrongState(
            Reason.TARGET_OPERATION_FORBIDDEN,
            f"The key {name} at {place.host} may not be used to {right}; az keyvault key set-attributes {which(place)} "
            f"--name {name} --ops … says what it may do.",
        )
    return lacking(place, [right])


def _out_of_use(place: Place, right: str, name: str, state: str, option: str) -> WrongState:
    if right == "import":
        return WrongState(
            Reason.KEK_UNSUITABLE,
            f"The KEK at {place.host} {state}, so it opens nothing; az keyvault key set-attributes {which(place)} "
            f"with its --name, --version and {option} puts it to use again.",
        )
    return WrongState(
        Reason.TARGET_KEY_DISABLED,
        f"The key {name} at {place.host} {state}; az keyvault key set-attributes {which(place)} --name {name} {option} "
        "makes it usable.",
    )


def _conflict(answer: Answer, place: Place, name: str) -> BrokerError:
    where = which(place)
    if answer.says("ObjectIsDeletedButRecoverable"):
        return WrongState(
            Reason.TARGET_NAME_DELETED,
            f"A deleted key still holds the name {name} at {place.host}: az keyvault key recover {where} --name {name} "
            f"brings it back, az keyvault key purge {where} --name {name} frees the name (not before its 7 to 90 days "
            "are over where purge protection is on); or choose another name there.",
        )
    if answer.says("ObjectIsBeingDeleted", "ObjectIsBeingRecovered"):
        return Unavailable(
            Reason.TARGET_CONFLICT,
            f"The key {name} is just being deleted or recovered at {place.host}; try again shortly.",
        )
    return Unavailable(
        Reason.TARGET_CONFLICT,
        f"Somebody else is just changing the key {name} at {place.host} ({answer.short}); try again.",
    )


def _short(code: object) -> str:
    return code if isinstance(code, str) and _CODE.fullmatch(code) else ""


def _seconds(headers: Mapping[str, str]) -> float | None:
    """Whole seconds of ``Retry-After``, or of Azure's own header in milliseconds; None without a sensible one."""
    for header, unit in (("x-ms-retry-after-ms", 1000.0), ("retry-after-ms", 1000.0), ("Retry-After", 1.0)):
        text = headers.get(header, "")
        if re.fullmatch(r"[0-9]{1,7}", text, re.ASCII):
            return int(text) / unit
    return None
