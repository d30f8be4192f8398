"""TargetService: decode, one call, encode."""

# ruff: noqa: D102 (the contract of each RPC stands in its .proto file)

from __future__ import annotations

from broker_api.v1 import targets_pb2 as wire

from broker.core.call import Call
from broker.core.model import Target
from broker.core.targets.register import Targets
from broker.rpc import codec
from broker.rpc.pages import PageTokens, page_size

MAX_SETTING = 512 * codec.KIBIBYTE
"""Of a CA as it is sent, with whatever text is around the certificates."""


MAX_PAGE = 16
"""A target can hold 128 KiB of certificates; more of them would not fit the 4 MiB that clients take."""


class TargetMethods:
    """The RPCs of TargetService."""

    def __init__(self, targets: Targets, pages: PageTokens) -> None:
        self._targets = targets
        self._pages = pages

    def create_target(self, call: Call, request: wire.CreateTargetRequest) -> wire.CreateTargetResponse:
        kind, settings = _settings(request)
        expected = request.expected_kek_thumbprint
        target = self._targets.create(call, request.name, kind, settings, expected, create_kek=request.create_kek)
        return wire.CreateTargetResponse(target=_target(target))

    def get_target(self, call: Call, request: wire.GetTargetRequest) -> wire.GetTargetResponse:
        return wire.GetTargetResponse(target=_target(self._targets.get(call, request.name)))

    def list_targets(self, call: Call, request: wire.ListTargetsRequest) -> wire.ListTargetsResponse:
        after = self._pages.open(call, (), request.page_token)
        page = self._targets.page(call, after, min(page_size(request.page_size), MAX_PAGE))
        return wire.ListTargetsResponse(
            targets=[_target(target) for target in page.items], next_page_token=self._pages.token(call, (), page.next)
        )

    def check_target(self, call: Call, request: wire.CheckTargetRequest) -> wire.CheckTargetResponse:
        findings = self._targets.check(call, request.name)
        return wire.CheckTargetResponse(
            findings=[wire.TargetFinding(name=each.name, passed=each.passed, detail=each.detail) for each in findings]
        )

    def repin_target(self, call: Call, request: wire.RepinTargetRequest) -> wire.RepinTargetResponse:
        codec.at_most(len(request.kek), codec.KIBIBYTE, "kek")
        target = self._targets.repin(call, request.name, request.expected_kek_thumbprint, request.kek)
        return wire.RepinTargetResponse(target=_target(target))

    def delete_target(self, call: Call, request: wire.DeleteTargetRequest) -> wire.DeleteTargetResponse:
        self._targets.delete(call, request.name, copies_unknown=request.copies_unknown)
        return wire.DeleteTargetResponse()


def _settings(request: wire.CreateTargetRequest) -> tuple[str, dict[str, str]]:
    """The kind is the choice that is set, its name with hyphens; its settings are the fields that are not empty."""
    chosen = request.WhichOneof("settings")
    if chosen is None:
        raise codec.missing("settings")
    settings = {field.name: value for field, value in getattr(request, chosen).ListFields()}
    for name, value in settings.items():
        codec.at_most(len(value), MAX_SETTING, name)
    return chosen.replace("_", "-"), settings


def _target(target: Target) -> wire.Target:
    message = wire.Target(
        name=target.name,
        kek_id=target.kek_id,
        kek_thumbprint=target.kek_thumbprint,
        create_time=codec.timestamp(target.created_at),
        revision=target.revision,
    )
    settings = getattr(message, target.kind.replace("-", "_"))
    settings.SetInParent()
    for name, value in target.settings.items():
        setattr(settings, name, value)
    return message
