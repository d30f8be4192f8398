"""A target's key-exchange key (KEK): whether it will do, whether it is the pinned one, and what helps if it is not."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from broker.core import ports
from broker.core.errors import WrongState
from broker.core.model import Target, WrappingKey
from broker.core.reasons import Reason

MIN_KEK_BITS = 2048

KEK = "kek"
"""The setting that names the KEK, in those kinds whose KEK is one of several keys at the target."""

UNFIT = frozenset({Reason.KEK_UNSUITABLE, Reason.KEK_WEAK, Reason.TARGET_KEK_MISSING})
"""Refusals that say something against the KEK which the settings name."""


def offered(port: ports.Target, target: Target) -> WrappingKey:
    """The KEK that lasts there, as it is now. What says something against it says what can be done in its place."""
    try:
        return port.offer().key
    except WrongState as error:
        raise remedied(error, port, target) from error


def standing(port: ports.Target, target: Target) -> WrappingKey | None:
    """As ``offered``; None, and nothing is asked, where each import has a wrapping key of its own."""
    return None if port.fresh else offered(port, target)


def made_for(port: ports.Offers, cargo: ports.Cargo) -> ports.Offer:
    """An offer for this cargo alone, by a target that makes one for each; nothing is pinned, so it must be fit."""
    offer = port.offer(cargo)
    check_kek(offer.key)
    return offer


def remedied(error: WrongState, port: ports.Target, target: Target) -> WrongState:
    """``error``, with what else can be done if it says something against the KEK."""
    if error.reason not in UNFIT or port.keks is None:
        return error
    return WrongState(error.reason, f"{error.message} {_another(target, port.keks.by_hand)}")


def _another(target: Target, by_hand: str) -> str:
    if not target.kek_thumbprint:  # it is only being registered
        return (
            "Or give the id of another one; with --create-kek and a name that is free one is made, for importing only."
        )
    return (
        f"Or have another one made there, {by_hand}, and pin it: `broker target repin {target.name} --kek ID "
        "--thumbprint SHA256`."
    )


def check_kek(kek: WrappingKey) -> None:
    """Return if ``kek`` is RSA of 2048 bits or more and has its thumbprint; else WrongState ``KEK_WEAK`` (BY-02)."""
    try:
        public = load_der_public_key(kek.public_key)
    except ValueError as error:
        raise WrongState(
            Reason.KEK_WEAK, "The target's wrapping key cannot be read; nothing is wrapped for it."
        ) from error
    if not isinstance(public, rsa.RSAPublicKey) or public.key_size < MIN_KEK_BITS or public.public_numbers().e < 65537:
        raise WrongState(
            Reason.KEK_WEAK,
            f"The target's wrapping key is not an RSA key of at least {MIN_KEK_BITS} bits; nothing is wrapped for it.",
        )
    if hashlib.sha256(kek.public_key).hexdigest() != kek.thumbprint:
        raise WrongState(
            Reason.KEK_WEAK, "The target's wrapping key does not have its thumbprint; nothing is wrapped for it."
        )


def check_pin(target: Target, kek: WrappingKey) -> None:
    """Return if ``kek`` is the one that was pinned for ``target``; else WrongState ``KEK_CHANGED`` (BY-01)."""
    if (kek.id, kek.thumbprint) != (target.kek_id, target.kek_thumbprint):
        raise WrongState(
            Reason.KEK_CHANGED,
            f"The target now offers a wrapping key with the thumbprint {kek.thumbprint}, not the pinned one; nothing "
            "was wrapped. If its owner says by another way that it was changed, pin it with `broker target repin "
            f"{target.name} --thumbprint` and the value that the owner reads there.",
        )
    check_kek(kek)
