"""Audit heads: what the HSM's audit key has signed of each chain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from threading import Lock

from broker.core import ports
from broker.core.call import Call, background_call
from broker.core.entries import head_statement
from broker.core.errors import InvalidRequest, Unavailable
from broker.core.kinds import SignatureAlgorithm
from broker.core.model import AuditHead, PolicyDocument
from broker.core.page import Page
from broker.core.policy.cedar import FIRST_POLICY
from broker.core.policy.guard import BROKER, Guard
from broker.core.ports import KeyRef
from broker.core.reasons import Reason
from broker.core.records import key_of
from broker.core.signatures import verify

MAX_CHAIN_NAME = 128


def signed_by(*public_keys: bytes) -> Callable[[AuditHead], bool]:
    """Tells the heads that one of these audit keys (SubjectPublicKeyInfo, DER) has signed from all others."""

    def genuine(head: AuditHead) -> bool:
        if not (head.chain + head.hash).isascii():
            return False
        statement = head_statement(head.chain, head.sequence, head.hash, head.signed_at)
        return any(verify(key, SignatureAlgorithm.ES256, statement, head.signature) for key in public_keys)

    return genuine


class Heads:
    """The noun behind AuditService; the background loop calls ``sign_due``.

    ``key`` gives the audit key in force, EC P-256; no other use of it exists, and no RPC can name it. ``handovers``:
    how it came to be that one.
    """

    def __init__(
        self,
        store: ports.Store,
        hsm: ports.Hsm,
        key: Callable[[], KeyRef],
        guard: Guard,
        now: ports.Now,
        handovers: Callable[[], list[Mapping[str, str]]] = list,
    ) -> None:
        self._store = store
        self._hsm = hsm
        self._key = key
        self._guard = guard
        self._now = now
        self._handovers = handovers
        self._told = 0
        self._signing = Lock()

    @classmethod
    def unasked(cls, store: ports.Store, hsm: ports.Hsm, key: KeyRef, now: ports.Now) -> Heads:
        """For a process that signs and answers nobody, so that it needs no policy of the store's."""
        first = PolicyDocument(version=0, text=FIRST_POLICY, author="", created_at=now())
        return cls(store, hsm, lambda: key, Guard(first), now)

    def state(self, call: Call) -> tuple[bytes, list[AuditHead], list[Mapping[str, str]]]:
        """(the audit key's SubjectPublicKeyInfo DER, the newest head of every chain, every hand-over)."""
        self._guard.check(call, BROKER)
        public_key = self._key().public_key
        if public_key is None:
            raise Unavailable(
                Reason.AUDIT_UNAVAILABLE,
                "This process has not read the audit key from the HSM; restart the broker, whose log then says why.",
            )
        return public_key, list(self._newest()), self._handovers()

    def sign(self, call: Call) -> list[AuditHead]:
        """Sign now what has moved; where nothing has, the heads that stand."""
        self._guard.check(call, BROKER)
        signed = self.sign_due() or list(self._newest())
        call.note(count=len(signed))
        return signed

    def page(self, call: Call, chain: str, after: tuple[str | int, ...], limit: int) -> Page[AuditHead]:
        """Signed heads in order of chain and sequence; ``chain`` "" is all of them."""
        if len(chain) > MAX_CHAIN_NAME:
            raise InvalidRequest(
                Reason.CHAIN_INVALID, "The name of the audit chain is too long; `broker audit heads` lists the chains."
            )
        self._guard.check(call, BROKER)
        heads = self._store.page(AuditHead, under=(chain,) if chain else (), after=after, limit=limit)
        return Page(items=heads, next=key_of(heads[-1]) if len(heads) == limit else ())

    def begin(self) -> None:
        """Begin the audit chain if it is not begun, and sign its first record: a chain without a head is nobody's."""
        self._store.check()
        self.sign_due()

    def sign_due(self) -> list[AuditHead]:
        """Sign every chain that moved since its last head, and return the new heads."""
        signed = self.sign_last()
        self._tell()
        return signed

    def sign_last(self) -> list[AuditHead]:
        """As ``sign_due``, of chains to which nothing is added any more."""
        with self._signing:  # the loop and a caller must not sign the same head twice
            key = self._key()
            return [self._sign(head, key) for head in self._store.heads()]

    def _tell(self) -> None:
        """Put the hand-overs into this process's journal: it has heads of the newest key, and is read by itself."""
        with self._signing:
            handovers = self._handovers()
            for one in handovers[self._told :]:
                call = background_call("audit/handover", 0, self._now)
                self._store.record(replace(call.outcome(), facts=dict(one)))
            self._told = len(handovers)

    def _sign(self, head: AuditHead, key: KeyRef) -> AuditHead:
        signed_at = self._now()
        statement = head_statement(head.chain, head.sequence, head.hash, signed_at)
        [signature] = self._hsm.sign(key, SignatureAlgorithm.ES256, [statement])
        signed = replace(head, signed_at=signed_at, signature=signature)
        self._store.save_head(signed)
        return signed

    def _newest(self) -> Iterator[AuditHead]:
        """The last head of each chain."""
        after: tuple[str | int, ...] = ()
        while first := self._store.page(AuditHead, after=after, limit=1):
            newest = self._store.last(AuditHead, first[0].chain) or first[0]
            yield newest
            after = key_of(newest)
