"""The composition root: builds every part once, in order, and alone names concrete classes."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from broker.auth import mtls
from broker.config import Config
from broker.core import ports
from broker.core.authority import Authority
from broker.core.call import Call
from broker.core.errors import BrokerError, WrongState
from broker.core.guard import Guard
from broker.core.heads import Heads
from broker.core.imports import Imports
from broker.core.key_use import KeyUse
from broker.core.keys import DestructionDelay, Keys
from broker.core.model import KeyType, KeyUsage, PolicyDocument, Principal
from broker.core.operators import Operators
from broker.core.policies import Policies
from broker.core.ports import KeyRef
from broker.core.targets import Targets
from broker.hsm.pkcs11 import Pkcs11Hsm
from broker.rpc.server import Nouns, Server
from broker.store.sql import SqlStore

log = structlog.get_logger("broker")


def now() -> datetime:
    """The broker's clock."""
    return datetime.now(UTC)


TICK = 1.0
"""Seconds between two rounds of the background loop."""

CHECK_EVERY = timedelta(seconds=3)
SIGN_EVERY = timedelta(seconds=30)
CHORES_EVERY = timedelta(seconds=20)


@dataclass(frozen=True, slots=True)
class InternalKeys:
    """The broker's own keys in the HSM. No RPC can name them: RPCs name keys by their row in the store (HS-17)."""

    audit = b"broker/audit/001"
    operator_ca = b"broker/oper-ca/1"
    server_ca = b"broker/tls-ca/01"


def internal_key(hsm_id: bytes, public_key: bytes) -> KeyRef:
    """An internal key: always EC P-256, always for signing, never exportable."""
    return KeyRef(hsm_id=hsm_id, type=KeyType.EC_P256, usage=KeyUsage.SIGN, public_key=public_key)


class Broker:
    """A broker that is built and not yet serving. ``close`` undoes what the constructor did."""
