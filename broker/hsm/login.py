"""Which of a module's tokens is meant, and the one attempt to log in to it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog
from pkcs11 import exceptions as ck
from pkcs11.constants import TokenFlag

from broker.core.errors import Unavailable, WrongState
from broker.core.reasons import Reason
from broker.hsm import ground
from broker.hsm.codes import told
from broker.hsm.config import HsmConfig, read_pin
from broker.hsm.module import Module

if TYPE_CHECKING:
    from pkcs11.types import Token

_log = structlog.get_logger(__name__)
_REFUSED_PIN: Final = (ck.PinIncorrect, ck.PinInvalid, ck.PinLenRange, ck.PinExpired)
_SHOWN: Final = 8


class PinRefusedError(WrongState):
    """The PIN was refused, or is not to be tried: nothing changes by itself, and each further attempt could lock it."""


def begun(config: HsmConfig) -> Module:
    """The module, initialised in its environment; what the system shows of its trouble is told with its own word."""
    os.environ.update(config.environment)
    try:
        module = Module(config.module)
        module.initialize()
    except Unavailable as refusal:
        seen = ground.trouble(config.module) or ground.lost_variable(config.module)
        if not seen:
            raise
        raise Unavailable(refusal.reason, f"{refusal.message} {seen[:1].upper()}{seen[1:]}.") from refusal
    return module


def serial_number(config: HsmConfig) -> str:
    """The serial number of the one token that is meant, without a login; "" when it has none."""
    module = begun(config)
    try:
        return serial_of(find_token(module, config))
    finally:
        module.finalize()


def find_token(module: Module, config: HsmConfig) -> Token:
    """The token with the configured label (and serial number, where one is configured).

    WrongState ``HSM_TOKEN_NOT_FOUND``, ``HSM_TOKEN_MISMATCH`` (the label is there with another serial number only),
    ``HSM_TOKEN_AMBIGUOUS``; each says what the module shows.
    """
    shown, blank = _tokens(module)
    named = [token for token in shown if token.label == config.token_label]
    found = [token for token in named if config.token_serial in {None, serial_of(token)}]
    if len(found) == 1:
        return found[0]
    if found:
        raise WrongState(Reason.HSM_TOKEN_AMBIGUOUS, _several(config.token_label, found))
    if named:
        raise WrongState(
            Reason.HSM_TOKEN_MISMATCH,
            f"The token labelled {config.token_label!a} that the module shows is {_list(named)}, and the configuration "
            f"asks for the serial number {config.token_serial!a}; bring that token back, or if this one is right, "
            "correct token_serial.",
        )
    raise WrongState(Reason.HSM_TOKEN_NOT_FOUND, _none(config, shown, blank))


def serial_of(token: Token) -> str:
    """A token's serial number as the configuration writes it."""
    return token.serial.rstrip(b"\0 ").decode("ascii", "replace")


def log_in(token: Token, pin_file: Path) -> Any:
    """A session that is logged in: exactly one attempt, and none that could be the last one.

    ``PinRefusedError`` with ``HSM_PIN_LOCKED``, ``HSM_PIN_INCORRECT`` or ``HSM_PIN_AT_RISK``; Unavailable otherwise.
    """
    _refuse_hopeless(token)
    pin = read_pin(pin_file)
    if token.flags & TokenFlag.USER_PIN_COUNT_LOW:
        _log.warning("somebody has entered a wrong user PIN of the token since the last login", token=token.label)
    try:
        return token.open(rw=True, user_pin=pin)
    except ck.PinLocked as fault:
        raise _locked() from fault
    except _REFUSED_PIN as fault:
        raise PinRefusedError(
            Reason.HSM_PIN_INCORRECT,
            f"The token refused the PIN in {pin_file} ({told(fault)}); correct the file. It is not tried again.",
        ) from fault
    except ck.PKCS11Error as fault:
        raise Unavailable(
            Reason.HSM_UNAVAILABLE, f"The HSM does not answer: it does not let the broker log in ({told(fault)})."
        ) from fault


def _refuse_hopeless(token: Token) -> None:
    if token.flags & TokenFlag.USER_PIN_LOCKED:
        raise _locked()
    if not token.flags & TokenFlag.USER_PIN_INITIALIZED:
        raise WrongState(
            Reason.HSM_TOKEN_NOT_FOUND, "The token has no user PIN yet; its security officer must set one."
        )
    if token.flags & TokenFlag.USER_PIN_FINAL_TRY:
        raise PinRefusedError(
            Reason.HSM_PIN_AT_RISK,
            "One more wrong user PIN would lock the token, so the broker does not try the one it has; log in once with "
            "the token's own tool and the right PIN, which ends this state.",
        )


def _locked() -> PinRefusedError:
    return PinRefusedError(Reason.HSM_PIN_LOCKED, "The token's PIN is locked; its security officer must set a new one.")


def _tokens(module: Module) -> tuple[list[Token], int]:
    """All tokens that are initialised, and how many places there are for another (SoftHSM always shows one)."""
    shown: list[Token] = []
    blank = 0
    for slot in module.library.get_slots(token_present=True):
        try:
            token = slot.get_token()
        except ck.PKCS11Error as fault:  # of one token; the others are looked at all the same
            _log.warning("a token of the module cannot be looked at", slot=slot.slot_id, code=told(fault))
            continue
        if token.flags & TokenFlag.TOKEN_INITIALIZED:
            shown.append(token)
        else:
            blank += 1
    return shown, blank


def _several(label: str, found: Sequence[Token]) -> str:
    if len({serial_of(token) for token in found}) == len(found):
        return f"{len(found)} tokens are labelled {label!a}: {_list(found)}; set token_serial to the one that is meant."
    return (
        f"The module shows {len(found)} tokens labelled {label!a}, some of one serial number: {_list(found)}; have it "
        "show the one that is meant in one slot only."
    )


def _none(config: HsmConfig, shown: Sequence[Token], blank: int) -> str:
    """What is there, and what of it may be the reason. Nothing here tells anybody to initialise a token."""
    sentence = f"The module shows no token labelled {config.token_label!a}; "
    if shown:
        alike = [token for token in shown if token.label.casefold() == config.token_label.casefold()]
        likely = f" Labels are compared to the letter: {alike[0].label!a}?" if alike else ""
        sentence += f"it shows {_list(shown)}.{likely}"
    else:
        sentence += "it shows none that is initialised." if blank else "it shows none at all."
    why = ground.trouble(config.module) or ground.lost_variable(config.module)
    return f"{sentence} {why[:1].upper()}{why[1:]}." if why else sentence


def _list(tokens: Sequence[Token]) -> str:
    told_of = [f"{token.label!a} (serial number {serial_of(token)!a})" for token in tokens[:_SHOWN]]
    more = len(tokens) - _SHOWN
    return ", ".join(told_of) + (f" and {more} more" if more > 0 else "")
