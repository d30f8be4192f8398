"""AuthorityService: decode, one call, encode."""

# ruff: noqa: D102 (the contract of each RPC stands in its .proto file)

from __future__ import annotations

import hashlib

from broker_api.v1 import authorities_pb2 as wire

from broker.core.authorities.lifecycle import Authorities, ends
from broker.core.call import Call
from broker.core.operations.oversight import Oversight
from broker.core.own_key import OwnKey
from broker.rpc import codec
from broker.rpc.jwk import pem
from broker.rpc.operations import to_wire

SHOWN = 10
"""Operators that are named; the others are counted."""


class AuthorityMethods:
    """The RPCs of AuthorityService."""

    def __init__(self, authorities: Authorities, oversight: Oversight) -> None:
        self._authorities = authorities
        self._oversight = oversight

    def list_authorities(self, call: Call, _request: wire.ListAuthoritiesRequest) -> wire.ListAuthoritiesResponse:
        return wire.ListAuthoritiesResponse(authorities=[_authority(one) for one in self._authorities.all(call)])

    def rotate_authority(self, call: Call, request: wire.RotateAuthorityRequest) -> wire.RotateAuthorityResponse:
        made = self._authorities.rotate(call, request.name)
        operation = to_wire(self._oversight.shown(made.operation)) if made.operation else None
        return wire.RotateAuthorityResponse(version=made.version, operation=operation)

    def retire_authority(self, call: Call, request: wire.RetireAuthorityRequest) -> wire.RetireAuthorityResponse:
        ended = self._authorities.retire(call, request.name)
        return wire.RetireAuthorityResponse(
            versions=[one.version for one in ended.versions],
            locked_out=ended.locked_out[:SHOWN],
            locked_out_count=len(ended.locked_out),
        )


def _authority(one: OwnKey) -> wire.Authority:
    return wire.Authority(
        name=one.name,
        version=one.version,
        state=codec.AUTHORITY_STATE.wire(one.state),
        create_time=codec.timestamp(one.created_at),
        active_time=codec.timestamp(one.since) if one.since else None,
        overlap_end_time=codec.timestamp(one.until) if one.until else None,
        expire_time=codec.timestamp(ends(one)) if one.certificate else None,
        public_key_pem=pem(one.public_key) if one.public_key else "",
        certificate_pem=one.certificate,
        thumbprint=hashlib.sha256(one.public_key).hexdigest() if one.public_key else "",
    )
