"""What is amiss with the thing that a permitted caller has named: it is not there, or not as the call needs it."""

from __future__ import annotations

from broker.core.errors import NotFound, WrongState
from broker.core.kinds import KeyState
from broker.core.model import Key
from broker.core.reasons import Reason

_SAVED = "`broker key cancel-destroy`, then `broker key enable` make it so"
_WAYS_OUT = {
    KeyState.PENDING: "it is still being made",
    KeyState.DISABLED: "`broker key enable` makes it so",
    KeyState.HELD: _SAVED,
    KeyState.DESTROY_SCHEDULED: _SAVED,
    KeyState.DESTROYED: "that is for good",
}


def no_key(name: str) -> NotFound:
    """``KEY_NOT_FOUND``."""
    return NotFound(Reason.KEY_NOT_FOUND, f"There is no key named {name}; `broker key list` shows those there are.")


def not_enabled(key: Key, why: str) -> WrongState:
    """``KEY_STATE`` of a key that is not enabled; ``why`` it has to be. Only where there is a way out it says which."""
    return WrongState(Reason.KEY_STATE, f"The key {key.name} is {key.state}; {why}: {_WAYS_OUT[key.state]}.")


def key_changed(name: str) -> WrongState:
    """``CHANGED_MEANWHILE``."""
    return WrongState(
        Reason.CHANGED_MEANWHILE,
        f"The key {name} was changed meanwhile; look at it (`broker key show {name}`), and send the request again if "
        "it is still meant.",
    )


def no_key_version(name: str, number: int, wanted: str) -> NotFound:
    """``KEY_VERSION_NOT_FOUND``; ``number`` 0 stands for the primary one, ``wanted`` says what it would have to be."""
    which = f"version {number}" if number else "primary version"
    return NotFound(
        Reason.KEY_VERSION_NOT_FOUND,
        f"The key {name} has no {which} that {wanted}; `broker key versions {name}` shows those it has.",
    )


def no_target(name: str) -> NotFound:
    """``TARGET_NOT_FOUND``."""
    return NotFound(
        Reason.TARGET_NOT_FOUND, f"There is no target named {name}; `broker target list` shows those there are."
    )


def no_operator(name: str) -> NotFound:
    """``OPERATOR_NOT_FOUND``."""
    return NotFound(
        Reason.OPERATOR_NOT_FOUND, f"There is no operator named {name}; `broker operator list` shows those there are."
    )


def no_secret(name: str) -> NotFound:
    """``SECRET_NOT_FOUND``. A pipeline reads it too, which cannot list them."""
    return NotFound(
        Reason.SECRET_NOT_FOUND,
        f"There is no secret named {name}; `broker secret list` shows an operator those there are.",
    )


def no_secret_version(name: str, number: int) -> NotFound:
    """``SECRET_VERSION_NOT_FOUND``; ``number`` 0 stands for the latest one."""
    which = f"version {number}" if number else "version"
    return NotFound(
        Reason.SECRET_VERSION_NOT_FOUND,
        f"The secret {name} has no {which}; `broker secret versions {name}` shows an operator those it has.",
    )


def no_field(name: str, number: int, field: str) -> NotFound:
    """``FIELD_NOT_FOUND``."""
    return NotFound(
        Reason.FIELD_NOT_FOUND,
        f"Version {number} of the secret {name} has no field {field}; `broker secret versions {name}` shows an "
        "operator the names of its fields.",
    )


def no_operation(name: str) -> NotFound:
    """``OPERATION_NOT_FOUND``; ``name`` is one that was parsed."""
    return NotFound(
        Reason.OPERATION_NOT_FOUND,
        f"There is no operation named {name}: it never was, or has been over for more than a day. `broker operation "
        "list` shows those there are; the audit has all.",
    )
