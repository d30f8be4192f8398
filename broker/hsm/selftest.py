"""Refusing to serve from a token that does not enforce what everything else rests on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import rsa
from pkcs11 import Attribute, Mechanism, MechanismFlag, ObjectClass
from pkcs11 import KeyType as CkKeyType
from pkcs11 import exceptions as ck

from broker.core.errors import WrongState
from broker.core.kinds import Purpose
from broker.hsm.binding import purpose_of
from broker.hsm.lending import SECRETS, Finder, lend
from broker.hsm.objects import read_public_key, type_of
from broker.hsm.sanity import check_public_key
from broker.hsm.sessions import AmbiguousError, Sessions, Worker
from broker.hsm.wrapping import kek_object

_WRAPS: Final = (Mechanism.AES_KEY_WRAP, Mechanism.AES_KEY_WRAP_PAD, Mechanism.AES_KEY_WRAP_KWP)
_ROLES: Final = (
    Attribute.SIGN,
    Attribute.DECRYPT,
    Attribute.WRAP,
    Attribute.UNWRAP,
    Attribute.DERIVE,
    Attribute.SENSITIVE,
)


def refuse_lax_token(sessions: Sessions, worker: Worker, kek: rsa.RSAPublicNumbers) -> None:
    """Try what must fail, with throw-away keys; WrongState ``HSM_NOT_ENFORCING`` if any of it works (HS-23)."""
    with sessions.objects:
        wrapper = _throw_away(worker, extractable=True, flags=MechanismFlag.WRAP)
        held = _throw_away(worker, extractable=False, flags=MechanismFlag.ENCRYPT)
    try:
        with kek_object(worker, kek, sessions.objects) as target:
            _must_fail("wrapped a key that is not extractable", lambda: _wrap(target, held, Mechanism.RSA_PKCS_OAEP))
        for mechanism in _WRAPS:
            _must_fail("wrapped a key that is not extractable", lambda m=mechanism: _wrap(wrapper, held, m))  # type: ignore[misc]
        _must_fail("showed the value of a sensitive key", lambda: held[Attribute.VALUE])
        _must_fail("made a key extractable afterwards", lambda: _set(held, Attribute.EXTRACTABLE, value=True))
        _must_fail("made a sensitive key readable afterwards", lambda: _set(held, Attribute.SENSITIVE, value=False))
        _must_fail("decrypted with a key that may only wrap", lambda: _decrypt(worker, wrapper))
    finally:
        with sessions.objects:
            wrapper.destroy()
            held.destroy()


def refuse_conflicting_keys(sessions: Sessions, finder: Finder, worker: Worker) -> None:
    """Look at each key of the broker's in the token (HS-01, HS-21). Hold the objects lock.

    WrongState ``HSM_KEY_CONFLICT`` for one that could open what it or another wraps, that may derive, that has two
    purposes or is readable; ``KEY_AMBIGUOUS`` for a second object under the id of one of the broker's own keys;
    Unavailable ``HSM_FAULT`` for a public key that is not sound. Objects with other labels are nobody's business here.
    """
    labels: dict[bytes, list[bytes]] = {}
    for kind in SECRETS:
        for thing in sessions.search(worker, {Attribute.CLASS: kind, Attribute.TOKEN: True}):
            found = finder.read_name(worker, thing)
            labels.setdefault(found[0], []).append(found[1])
            if purpose_of(found[1]):
                _refuse_conflict(thing)
    _refuse_doubles(labels)
    for thing in sessions.search(worker, {Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.TOKEN: True}):
        hsm_id, label = finder.read_name(worker, thing)
        # A public half alone, maybe half written, is what a kill leaves of a generation: nothing uses it.
        if purpose_of(label) and label in labels.get(hsm_id, ()) and (key_type := type_of(thing)) is not None:
            check_public_key(key_type, read_public_key(thing, key_type))


def _refuse_doubles(labels: Mapping[bytes, Sequence[bytes]]) -> None:
    """A caller's key that is there twice is refused when it is used; one of the broker's own stops the start."""
    for label in [label for sharing in labels.values() if len(sharing) > 1 for label in sharing]:
        if purpose_of(label) not in {None, Purpose.KEY}:
            raise AmbiguousError(label)


def _refuse_conflict(thing: Any) -> None:
    roles = thing.get_attributes(list(_ROLES))
    purposes = sum(bool(roles.get(role)) for role in (Attribute.SIGN, Attribute.DECRYPT))
    forbidden = any(roles.get(role) for role in (Attribute.WRAP, Attribute.UNWRAP, Attribute.DERIVE))
    if purposes != 1 or forbidden or not roles.get(Attribute.SENSITIVE):
        raise WrongState(
            "HSM_KEY_CONFLICT",
            f"The key {thing.label} in the HSM has conflicting roles or is readable: somebody changed or "
            "planted it; remove it from the token.",
        )


def _throw_away(worker: Worker, *, extractable: bool, flags: MechanismFlag) -> Any:
    template = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: extractable, Attribute.PRIVATE: True}
    return worker.session.generate_key(CkKeyType.AES, 256, store=False, capabilities=flags, template=template)


def _must_fail(what: str, attempt: Callable[[], object]) -> None:
    with contextlib.suppress(ck.PKCS11Error):
        attempt()
        raise WrongState("HSM_NOT_ENFORCING", f"The token {what}; it cannot keep keys safe and is not used.")


def _wrap(wrapper: Any, held: Any, mechanism: Mechanism) -> None:
    wrapper.wrap_key(held, mechanism=mechanism)


def _set(thing: Any, attribute: Attribute, *, value: bool) -> None:
    thing[attribute] = value


def _decrypt(worker: Worker, wrapper: Any) -> None:
    lend(worker.session, wrapper.handle, CkKeyType.AES).decrypt(
        bytes(16), mechanism=Mechanism.AES_CBC, mechanism_param=bytes(16)
    )
