"""Data objects that say whose the token is (``broker.core.claiming``); they hold no secret, and are no keys."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from pkcs11 import Attribute, ObjectClass
from pkcs11 import exceptions as ck

from broker.core.errors import WrongState
from broker.core.reasons import Reason
from broker.hsm.codes import told
from broker.hsm.sessions import TokenSessions, Worker
from broker.hsm.things import Thing

LABEL: Final = b"broker:claim:"

_NOT_KEPT: Final = (
    ck.AttributeReadOnly,
    ck.AttributeTypeInvalid,
    ck.AttributeValueInvalid,
    ck.FunctionNotSupported,
    ck.TemplateIncomplete,
    ck.TemplateInconsistent,
)
"""What a token says that has no data objects, or none that are private."""


def read(sessions: TokenSessions, worker: Worker) -> list[bytes]:
    """The values of all that are there. Hold the objects lock."""
    return [value for _, value in _found(sessions, worker)]


def add(sessions: TokenSessions, worker: Worker, value: bytes) -> None:
    """Have one with this value; WrongState ``HSM_NO_DATA_OBJECTS``. Hold the objects lock."""
    if value in read(sessions, worker):
        return  # the attempt before got so far
    try:
        worker.session.create_object(
            {
                Attribute.CLASS: ObjectClass.DATA,
                Attribute.TOKEN: True,
                Attribute.PRIVATE: True,
                Attribute.LABEL: LABEL.decode(),
                Attribute.APPLICATION: "broker",
                Attribute.VALUE: value,
            }
        )
    except _NOT_KEPT as fault:
        raise _not_kept(told(fault)) from fault
    if value not in read(sessions, worker):
        raise _not_kept("it says that it made one, and has none")


def drop(sessions: TokenSessions, worker: Worker, values: Collection[bytes]) -> None:
    """Remove those with these values; twice is the same as once. Hold the objects lock."""
    for thing, value in _found(sessions, worker):
        if value in values:
            thing.destroy()


def _found(sessions: TokenSessions, worker: Worker) -> list[tuple[Thing, bytes]]:
    wanted = {Attribute.CLASS: ObjectClass.DATA, Attribute.TOKEN: True, Attribute.LABEL: LABEL.decode()}
    things = sessions.search(worker, wanted)
    if not things:
        sessions.confirm()  # a private object is invisible after a logout
    return [(thing, thing[Attribute.VALUE]) for thing in things]


def _not_kept(why: str) -> WrongState:
    return WrongState(
        Reason.HSM_NO_DATA_OBJECTS,
        f"The token keeps no private data object ({why}), so a second broker on a copy of the database is not noticed; "
        "see to it that there is none, or use a token that keeps them.",
    )
