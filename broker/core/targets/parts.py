"""The parts that not every target has, and what is said where one is missing."""

from __future__ import annotations

from broker.core import ports
from broker.core.errors import InvalidRequest, WrongState
from broker.core.reasons import Reason


def terms_of(port: ports.Target) -> ports.KeepsTerms:
    """How keys are held to terms there; else InvalidRequest ``TERMS_UNSUPPORTED``."""
    if port.terms is None:
        raise InvalidRequest(
            Reason.TERMS_UNSUPPORTED,
            "This kind of target holds no key to operations, tags or times; import it without, and say in the target's "
            "own policies who may use it.",
        )
    return port.terms


def files_of(port: ports.Target) -> ports.Carries:
    """How keys are carried there by hand; else WrongState ``TRANSFER_FILES_OFF``."""
    if port.files is None:
        raise WrongState(
            Reason.TRANSFER_FILES_OFF,
            "This kind of target takes no key from a file; import it instead (`broker key import`).",
        )
    port.files.check_transfer()
    return port.files


def keks_of(port: ports.Target) -> ports.MakesKek:
    """How a KEK is made there; else WrongState ``TARGET_KEK_FIXED``."""
    if port.keks is None:
        raise kek_fixed()
    return port.keks


def kek_fixed() -> WrongState:
    """Nobody chooses the KEK of such a target."""
    return WrongState(Reason.TARGET_KEK_FIXED, "This kind of target has one KEK of its own; register it without a KEK.")
