"""Refusing to serve from a token that does not enforce what everything else rests on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import rsa
from pkcs11 import Attribute, Mechanism, MechanismFlag
from pkcs11 import KeyType as CkKeyType
from pkcs11 import exceptions as ck

from broker.core.errors import WrongState
from broker.core.reasons import Reason
from broker.core.report import Probe
from broker.hsm.codes import told
from broker.hsm.lending import lend
from broker.hsm.sessions import TokenSessions, Worker
from broker.hsm.wrapping import kek_object

_WRAPS: Final = (Mechanism.AES_KEY_WRAP, Mechanism.AES_KEY_WRAP_PAD, Mechanism.AES_KEY_WRAP_KWP)


def refuse_lax_token(sessions: TokenSessions, worker: Worker, kek: rsa.RSAPublicNumbers) -> tuple[Probe, ...]:
    """Try what must fail, with throw-away keys; WrongState ``HSM_NOT_ENFORCING`` if any of it works (HS-23).

    The answer tells what could not be tried, because the token cannot make the keys for it.
    """
    try:
        with sessions.objects:
            wrapper = _throw_away(worker, extractable=True, flags=MechanismFlag.WRAP)
            held = _throw_away(worker, extractable=False, flags=MechanismFlag.ENCRYPT)
    except ck.PKCS11Error as fault:
        sessions.confirm()
        detail = f"No AES key could be made for the trial ({told(fault)}), so it was not tried what the token forbids."
        return (Probe(name="enforcement", passed=False, detail=detail),)
    try:
        untried = _try_oaep(sessions, worker, kek, held)
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
    return untried


def _try_oaep(sessions: TokenSessions, worker: Worker, kek: rsa.RSAPublicNumbers, held: Any) -> tuple[Probe, ...]:
    try:
        with kek_object(worker, kek, sessions.objects) as target:
            _must_fail("wrapped a key that is not extractable", lambda: _wrap(target, held, Mechanism.RSA_PKCS_OAEP))
    except ck.PKCS11Error as fault:
        sessions.confirm()
        detail = f"No RSA key could be put there for the trial ({told(fault)}), so wrapping with one was not tried."
        return (Probe(name="enforcement RSA", passed=False, detail=detail),)
    return ()


def _throw_away(worker: Worker, *, extractable: bool, flags: MechanismFlag) -> Any:
    template = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: extractable, Attribute.PRIVATE: True}
    return worker.session.generate_key(CkKeyType.AES, 256, store=False, capabilities=flags, template=template)


def _must_fail(what: str, attempt: Callable[[], object]) -> None:
    with contextlib.suppress(ck.PKCS11Error):
        attempt()
        raise WrongState(
            Reason.HSM_NOT_ENFORCING,
            f"The token {what}; it cannot keep keys safe and is not used. Use another one, or ask its vendor how it "
            "is made to refuse that.",
        )


def _wrap(wrapper: Any, held: Any, mechanism: Mechanism) -> None:
    wrapper.wrap_key(held, mechanism=mechanism)


def _set(thing: Any, attribute: Attribute, *, value: bool) -> None:
    thing[attribute] = value


def _decrypt(worker: Worker, wrapper: Any) -> None:
    lend(worker.session, wrapper.handle, CkKeyType.AES).decrypt(
        bytes(16), mechanism=Mechanism.AES_CBC, mechanism_param=bytes(16)
    )
