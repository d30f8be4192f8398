"""OperatorService: decode, one call, encode."""

# ruff: noqa: D102 (the contract of each RPC stands in its .proto file)

from __future__ import annotations

from collections.abc import Callable

from broker_api.v1 import operators_pb2 as wire

from broker.core.call import Call
from broker.core.model import Operator
from broker.core.operators.register import Issued, Operators
from broker.rpc import codec
from broker.rpc.pages import PageTokens, page_size

MAX_CSR = 8 * codec.KIBIBYTE
MAX_GROUPS = 16


class OperatorMethods:
    """The RPCs of OperatorService. ``trouble``: what is wrong with the clocks, and who else has the token."""

    def __init__(self, operators: Operators, pages: PageTokens, trouble: Callable[[], tuple[str, str]]) -> None:
        self._operators = operators
        self._pages = pages
        self._trouble = trouble

    def add_operator(self, call: Call, request: wire.AddOperatorRequest) -> wire.AddOperatorResponse:
        codec.at_most(len(request.groups), MAX_GROUPS, "groups")
        ttl = codec.duration(request, "ttl")
        operator, issued = self._operators.add(call, request.name, list(request.groups), _csr(request.csr_pem), ttl)
        return wire.AddOperatorResponse(operator=_operator(operator), certificate=_certificate(issued))

    def renew_certificate(self, call: Call, request: wire.RenewCertificateRequest) -> wire.RenewCertificateResponse:
        issued = self._operators.renew(call, _csr(request.csr_pem), codec.duration(request, "ttl"))
        return wire.RenewCertificateResponse(certificate=_certificate(issued))

    def issue_certificate(self, call: Call, request: wire.IssueCertificateRequest) -> wire.IssueCertificateResponse:
        issued = self._operators.issue(call, request.name, _csr(request.csr_pem), codec.duration(request, "ttl"))
        return wire.IssueCertificateResponse(certificate=_certificate(issued))

    def list_operators(self, call: Call, request: wire.ListOperatorsRequest) -> wire.ListOperatorsResponse:
        after = self._pages.open(call, (), request.page_token)
        page = self._operators.page(call, after, page_size(request.page_size))
        return wire.ListOperatorsResponse(
            operators=[_operator(each) for each in page.items], next_page_token=self._pages.token(call, (), page.next)
        )

    def set_operator_groups(self, call: Call, request: wire.SetOperatorGroupsRequest) -> wire.SetOperatorGroupsResponse:
        codec.at_most(len(request.groups), MAX_GROUPS, "groups")
        operator = self._operators.set_groups(call, request.name, list(request.groups))
        return wire.SetOperatorGroupsResponse(operator=_operator(operator))

    def revoke_certificates(
        self, call: Call, request: wire.RevokeCertificatesRequest
    ) -> wire.RevokeCertificatesResponse:
        return wire.RevokeCertificatesResponse(operator=_operator(self._operators.revoke(call, request.name)))

    def remove_operator(self, call: Call, request: wire.RemoveOperatorRequest) -> wire.RemoveOperatorResponse:
        return wire.RemoveOperatorResponse(operator=_operator(self._operators.remove(call, request.name)))

    def who_am_i(self, call: Call, _request: wire.WhoAmIRequest) -> wire.WhoAmIResponse:
        self._operators.whoami(call)
        me = call.principal
        clock_trouble, token_trouble = self._trouble()
        return wire.WhoAmIResponse(
            principal=str(me),
            groups=me.groups,
            method=me.method,
            credential=me.credential,
            clock_trouble=clock_trouble,
            token_trouble=token_trouble,
        )


def _csr(text: str) -> bytes:
    codec.at_most(len(text), MAX_CSR, "csr_pem")
    if not text.isascii():
        raise codec.not_pem("csr_pem")
    return text.encode("ascii")


def _operator(operator: Operator) -> wire.Operator:
    return wire.Operator(
        name=operator.name,
        groups=operator.groups,
        state=codec.OPERATOR_STATE.wire(operator.state),
        not_before=codec.timestamp(operator.not_before),
        create_time=codec.timestamp(operator.created_at),
        revision=operator.revision,
    )


def _certificate(issued: Issued) -> wire.Certificate:
    return wire.Certificate(
        pem=issued.pem.decode("ascii"),
        ca_pem=issued.ca_pem.decode("ascii"),
        serial=issued.serial,
        expire_time=codec.timestamp(issued.expires_at),
        server_ca_pem=issued.server_ca_pem.decode("ascii"),
    )
