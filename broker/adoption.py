"""`init` on the token of an earlier release: its keys get the labels that bind them, once.

The broker's own keys are known by the files that ``init`` wrote, root keys and callers' keys by their rows. Rows are
believed this once, as far as the token's objects agree; it never happens again once the audit key has its label, which
it gets last.
"""

from __future__ import annotations

from collections.abc import Iterator

from broker import own_keys
from broker.config import Config
from broker.core.errors import BrokerError
from broker.core.keys import refs as key_refs
from broker.core.kinds import Purpose, VersionState
from broker.core.model import RootKey
from broker.core.ports import KeyRef, Store
from broker.core.reasons import Reason
from broker.core.secrets import root_rows
from broker.hsm.pkcs11 import Pkcs11Hsm

_THERE = frozenset({VersionState.PENDING, VersionState.ENABLED})


def adopt(config: Config, store: Store, device: Pkcs11Hsm) -> int:
    """How many keys were given their labels; 0 when there was nothing to do."""
    return device.adopt(known(config, store)) if _of_an_earlier_release(config, device) else 0


def _of_an_earlier_release(config: Config, device: Pkcs11Hsm) -> bool:
    if not (config.certificates / f"{Purpose.AUDIT}.pem").exists():
        return False
    try:
        device.keyring(Purpose.AUDIT).public_key(own_keys.internal_key(config, Purpose.AUDIT))
    except BrokerError as refusal:
        return refusal.reason == Reason.HSM_NOT_ADOPTED
    return False


def known(config: Config, store: Store) -> Iterator[tuple[Purpose, KeyRef]]:
    """Every key that the broker's files and rows name, and what each is for; the broker's own come first."""
    for purpose in own_keys.INTERNAL_KEYS:
        if (config.certificates / f"{purpose}.pem").exists():
            yield purpose, own_keys.internal_key(config, purpose)
    for root in store.page(RootKey, limit=root_rows.MOST + 1):
        yield Purpose.ROOT, root_rows.ref(root)
    for key in key_refs.refs(store, _THERE):
        yield Purpose.KEY, key
