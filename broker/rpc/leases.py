"""LeaseService: decode, one call, encode."""

# ruff: noqa: D102 (the contract of each RPC stands in its .proto file)

from __future__ import annotations

from broker_api.v1 import leases_pb2 as wire

from broker.core.call import Call
from broker.core.leases.lifecycle import Leases
from broker.core.model import Lease
from broker.rpc import codec
from broker.rpc.pages import PageTokens, page_size


class LeaseMethods:
    """The RPCs of LeaseService."""

    def __init__(self, leases: Leases, pages: PageTokens) -> None:
        self._leases = leases
        self._pages = pages

    def list_leases(self, call: Call, request: wire.ListLeasesRequest) -> wire.ListLeasesResponse:
        query = (request.principal, request.session)
        after = self._pages.open(call, query, request.page_token)
        page = self._leases.page(call, request.principal, request.session, after, page_size(request.page_size))
        return wire.ListLeasesResponse(
            leases=[to_wire(each) for each in page.items], next_page_token=self._pages.token(call, query, page.next)
        )

    def revoke_leases(self, call: Call, request: wire.RevokeLeasesRequest) -> wire.RevokeLeasesResponse:
        revoked = self._leases.revoke(call, lease=request.lease, principal=request.principal, prefix=request.prefix)
        return wire.RevokeLeasesResponse(revoked=revoked)


def to_wire(each: Lease) -> wire.Lease:
    """A lease for the wire."""
    return wire.Lease(
        id=each.id,
        session=each.session,
        principal=each.principal,
        resource=each.resource,
        version=each.version,
        state=codec.LEASE_STATE.wire(each.state),
        create_time=codec.timestamp(each.created_at),
        expire_time=codec.timestamp(each.expires_at),
    )
