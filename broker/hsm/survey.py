"""What is in the token when the broker starts: its own keys, and what other programs keep there.

The broker's own are known by their labels; which of them are in use its database knows. All else is left alone,
whatever it is and however it answers: it is counted, and no more.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import structlog
from pkcs11 import Attribute, ObjectClass
from pkcs11 import exceptions as ck

from broker.core.errors import BrokerError
from broker.core.kinds import Purpose
from broker.core.ports import RESERVED_IDS
from broker.core.report import Probe
from broker.hsm import claims
from broker.hsm.binding import ROLES, ULONG, conflict, conflicting, purpose_of
from broker.hsm.codes import told
from broker.hsm.features import OBJECTS
from broker.hsm.lending import SECRETS
from broker.hsm.objects import read_public_key, type_of
from broker.hsm.sanity import check_public_key
from broker.hsm.sessions import AmbiguousError, TokenSessions, Worker
from broker.hsm.things import Thing

_log = structlog.get_logger(__name__)
_NAME: Final[Mapping[int, int]] = {Attribute.CLASS: ULONG, Attribute.ID: 256, Attribute.LABEL: 256}
_PUBLIC: Final = int(ObjectClass.PUBLIC_KEY)


@dataclass(frozen=True, slots=True)
class _Object:
    thing: Thing
    kind: int
    hsm_id: bytes
    label: bytes


@dataclass(slots=True)
class Survey:
    """How many objects there are of whom, and the labels of the broker's that are not as it made them."""

    own: int = 0
    others: int = 0
    malformed: list[str] = field(default_factory=list)

    def probe(self) -> Probe:
        """What of it the report tells."""
        rest = f"; {self.others} objects of other programs are left alone" if self.others else ""
        if not self.malformed:
            return Probe(name=OBJECTS, passed=True, detail=f"{self.own} objects of the broker{rest}.")
        named = ", ".join(self.malformed[:5])
        return Probe(
            name=OBJECTS,
            passed=False,
            detail=f"{len(self.malformed)} objects with a label of the broker are not as it makes keys and are not "
            f"used: {named}{rest}.",
        )


def survey(sessions: TokenSessions, worker: Worker) -> Survey:
    """Look at every object of the token (HS-01, HS-21). Hold the objects lock.

    What is wrong with one of the broker's own keys (audit, CAs, rows) stops the start: ``HSM_KEY_CONFLICT``,
    ``HSM_FAULT``, ``KEY_AMBIGUOUS`` for a second key object under its id. Of any other object with a label of the
    broker's it is told; such a key is refused when it is to be used.
    """
    found, beside = Survey(), defaultdict[bytes, list[bytes]](list)
    keys: list[_Object] = []
    for thing in sessions.search(worker, {Attribute.TOKEN: True}):
        one = _named(sessions, worker, thing)
        if one is not None and one.kind in SECRETS:
            beside[one.hsm_id].append(one.label)
        if one is not None and one.label == claims.LABEL:
            found.own += 1
        elif one is None or purpose_of(one.label) is None:
            found.others += 1
        else:
            found.own += 1
            keys.append(one)
    _refuse_doubles(beside)
    for one in keys:
        try:
            _look_at(sessions, worker, one, paired=one.label in beside.get(one.hsm_id, ()))
        except ck.PKCS11Error:
            sessions.confirm()
            found.malformed.append(one.label.decode(errors="replace"))
        except BrokerError:
            if one.hsm_id.startswith(RESERVED_IDS):
                raise
            found.malformed.append(one.label.decode(errors="replace"))
    return found


def _named(sessions: TokenSessions, worker: Worker, thing: Thing) -> _Object | None:
    """None for one that does not even tell what it is, or went while it was looked at."""
    try:
        read = sessions.module.read(worker.session, thing.handle, _NAME)
    except ck.PKCS11Error as fault:
        sessions.confirm()
        _log.info("an object of the token cannot be looked at; it is left alone", code=told(fault))
        return None
    kind = int.from_bytes(read.get(Attribute.CLASS, b""), sys.byteorder)
    return _Object(thing, kind, read.get(Attribute.ID, b""), read.get(Attribute.LABEL, b""))


def _look_at(sessions: TokenSessions, worker: Worker, one: _Object, *, paired: bool) -> None:
    if one.kind in SECRETS and conflict(sessions.module.read(worker.session, one.thing.handle, ROLES)):
        raise conflicting(one.label)
    # A public half alone, maybe half written, is what a kill leaves of a generation: nothing uses it.
    if one.kind == _PUBLIC and paired and (key_type := type_of(one.thing)) is not None:
        check_public_key(key_type, read_public_key(one.thing, key_type))


def _refuse_doubles(beside: dict[bytes, list[bytes]]) -> None:
    """A caller's key that is there twice is refused when it is used; one of the broker's own stops the start."""
    for label in [label for sharing in beside.values() if len(sharing) > 1 for label in sharing]:
        if purpose_of(label) not in {None, Purpose.KEY}:
            raise AmbiguousError(label)
