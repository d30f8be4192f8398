"""AuditService: decode, one call, encode."""

# ruff: noqa: D102 (the contract of each RPC stands in its .proto file)

from __future__ import annotations

from broker_api.v1 import audit_pb2 as wire

from broker.core.audit.heads import Heads
from broker.core.call import Call
from broker.core.model import AuditHead
from broker.rpc import codec
from broker.rpc.jwk import pem
from broker.rpc.pages import PageTokens, page_size

MAX_CHAIN = 128


class AuditMethods:
    """The RPCs of AuditService."""

    def __init__(self, heads: Heads, pages: PageTokens) -> None:
        self._heads = heads
        self._pages = pages

    def get_audit_state(self, call: Call, _request: wire.GetAuditStateRequest) -> wire.GetAuditStateResponse:
        public_key, heads, handovers = self._heads.state(call)
        return wire.GetAuditStateResponse(
            public_key_pem=pem(public_key),
            heads=[_head(head) for head in heads],
            handovers=[wire.AuditHandover(**one) for one in handovers],
        )

    def sign_audit_head(self, call: Call, _request: wire.SignAuditHeadRequest) -> wire.SignAuditHeadResponse:
        return wire.SignAuditHeadResponse(heads=[_head(head) for head in self._heads.sign(call)])

    def list_audit_heads(self, call: Call, request: wire.ListAuditHeadsRequest) -> wire.ListAuditHeadsResponse:
        codec.at_most(len(request.chain), MAX_CHAIN, "chain")
        query = (request.chain,)
        after = self._pages.open(call, query, request.page_token)
        page = self._heads.page(call, request.chain, after, page_size(request.page_size))
        return wire.ListAuditHeadsResponse(
            heads=[_head(head) for head in page.items], next_page_token=self._pages.token(call, query, page.next)
        )


def _head(head: AuditHead) -> wire.AuditHead:
    return wire.AuditHead(
        chain=head.chain,
        sequence=head.sequence,
        hash=head.hash,
        sign_time=codec.timestamp(head.signed_at),
        signature=head.signature,
        sign_time_text=head.signed_at.isoformat(timespec="microseconds"),
    )
