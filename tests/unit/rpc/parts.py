"""What the tests of the services share: a noun that answers what it is told to."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.core import kinds, model
from broker.core.call import Call
from broker.core.inventory.lifecycle import Entry
from broker.rpc.keys import KeyMethods
from broker.rpc.pages import PageTokens

THEN = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


PAGES = PageTokens(secrets.token_bytes(32))


PRIVATE = ec.generate_private_key(ec.SECP256R1())


SPKI = PRIVATE.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


KEY = model.Key(
    name="payments",
    type=kinds.KeyType.EC_P256,
    usage=kinds.KeyUsage.SIGN,
    exportable=True,
    labels={"team": "pay"},
    owner="operator/alice",
    state=kinds.KeyState.DESTROY_SCHEDULED,
    primary=2,
    latest=3,
    created_at=THEN,
    destroy_at=THEN + timedelta(days=7),
    revision=4,
)
VERSION = model.KeyVersion(
    key="payments",
    number=2,
    state=kinds.VersionState.ENABLED,
    hsm_id=b"i" * 16,
    public_key=SPKI,
    sealed=True,
    created_at=THEN,
)

ENTRY = Entry(key=KEY, primary=VERSION, schedule=None, used=None, copies=())


class Noun:
    """Answers each method with what it was given, and keeps the arguments after the call."""

    def __init__(self, **answers: Any) -> None:
        self._answers = answers
        self.asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        def answer(_call: Call, *args: Any, **options: Any) -> Any:
            self.asked.append((name, args, options))
            return self._answers[name]

        return answer


def keys(**answers: Any) -> tuple[Any, KeyMethods]:
    noun: Any = Noun(**answers)
    settling: Any = SimpleNamespace(settle=noun.settle, held=lambda _name="": {"payments": [2]})
    return noun, KeyMethods(noun, noun, settling, noun, noun, noun, noun, PAGES)
