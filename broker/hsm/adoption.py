"""Keys of a token that an earlier release has filled: labelled with their id, they get a label that binds them.

What the references say is believed this once, as far as the token's objects agree with it; afterwards the label holds.
"""

from __future__ import annotations

from collections.abc import Iterable

from pkcs11 import Attribute, ObjectClass
from pkcs11 import exceptions as ck

from broker.core.errors import WrongState
from broker.core.kinds import Purpose
from broker.core.ports import KeyRef
from broker.core.reasons import Reason
from broker.hsm import objects
from broker.hsm.binding import Binding, bind, not_this
from broker.hsm.lending import SECRETS, Finder, Half
from broker.hsm.sessions import TokenSessions, Worker


def adopt(sessions: TokenSessions, finder: Finder, worker: Worker, wanted: Iterable[tuple[Purpose, KeyRef]]) -> int:
    """Label each key of these that is there as an earlier release left it; how many. Nothing, if one does not agree.

    WrongState ``KEY_NOT_THIS``; ``HSM_LABEL_FIXED`` when the token does not let labels be changed. Hold the objects
    lock. May be repeated: what is labelled already is left alone, and a key of which one half is, is completed. The
    first of ``wanted`` is labelled last, and so shows whether all is done.
    """
    old = _halves(sessions, finder, worker)
    if not old:
        return 0
    plan: dict[bytes, tuple[Binding, list[Half]]] = {}
    for purpose, key in wanted:
        binding, halves = bind(purpose, key), old.get(key.hsm_id)
        if halves is None:
            continue
        if key.hsm_id in plan:
            raise not_this(binding.label, "two rows of the database name its id")
        _refuse_disagreement(finder, worker, binding, key, halves)
        plan[key.hsm_id] = binding, halves
    for binding, halves in reversed(plan.values()):
        for half in halves:
            _relabel(finder, worker, binding, half)
    return len(plan)


def _halves(sessions: TokenSessions, finder: Finder, worker: Worker) -> dict[bytes, list[Half]]:
    """All halves under each id of which one has its id in hex as its label."""
    found: dict[bytes, list[Half]] = {}
    for kind in (*SECRETS, ObjectClass.PUBLIC_KEY):
        for thing in sessions.search(worker, {Attribute.CLASS: kind, Attribute.TOKEN: True}):
            hsm_id, label = finder.read_name(worker, thing)
            found.setdefault(hsm_id, []).append(Half(thing, kind, label))
    return {hsm_id: halves for hsm_id, halves in found.items() if any(half.label == _old(hsm_id) for half in halves)}


def _refuse_disagreement(finder: Finder, worker: Worker, binding: Binding, key: KeyRef, halves: list[Half]) -> None:
    kinds = [half.kind for half in halves]
    if any(half.label not in {_old(key.hsm_id), binding.label} for half in halves) or len(set(kinds)) != len(kinds):
        raise not_this(binding.label, "there are objects of others under its id")
    for half in halves:
        if half.kind in SECRETS:
            finder.refuse_misfit(worker, binding, half.thing)
        elif key.public_key not in {None, objects.read_public_key(half.thing, key.type)}:
            raise not_this(binding.label, "its public key in the token is another one than was recorded")


def _relabel(finder: Finder, worker: Worker, binding: Binding, half: Half) -> None:
    try:
        half.thing[Attribute.LABEL] = binding.label.decode()
    except ck.PKCS11Error as fault:
        raise _fixed() from fault
    if finder.read_name(worker, half.thing)[1] != binding.label:
        raise _fixed()


def _old(hsm_id: bytes) -> bytes:
    return hsm_id.hex().encode()


def _fixed() -> WrongState:
    return WrongState(
        Reason.HSM_LABEL_FIXED,
        "The token does not let the labels of its keys be changed, so keys of an earlier release cannot be used; ask "
        "its vendor whether that can be allowed, or go on with the release before, which uses them as they are.",
    )
