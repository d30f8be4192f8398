"""DriftService: decode, one call, encode."""

# ruff: noqa: D102 (the contract of each RPC stands in its .proto file)

from __future__ import annotations

from broker_api.v1 import drift_pb2 as wire

from broker.core.call import Call
from broker.core.drift.lifecycle import Drifts, Report, Shown
from broker.rpc import codec
from broker.rpc.pages import PageTokens, page_size


class DriftMethods:
    """The RPCs of DriftService."""

    def __init__(self, drifts: Drifts, pages: PageTokens) -> None:
        self._drifts = drifts
        self._pages = pages

    def check_drift(self, call: Call, request: wire.CheckDriftRequest) -> wire.CheckDriftResponse:
        return wire.CheckDriftResponse(report=_report(self._drifts.check(call, request.target)))

    def list_drift(self, call: Call, request: wire.ListDriftRequest) -> wire.ListDriftResponse:
        after = self._pages.open(call, (), request.page_token)
        page = self._drifts.page(call, after, page_size(request.page_size))
        return wire.ListDriftResponse(
            reports=[_report(one) for one in page.items], next_page_token=self._pages.token(call, (), page.next)
        )


def _report(one: Report) -> wire.DriftReport:
    return wire.DriftReport(
        target=one.target,
        check_time=codec.timestamp(one.report.checked_at),
        findings=[_finding(each) for each in one.findings],
    )


def _finding(shown: Shown) -> wire.DriftFinding:
    one = shown.finding
    return wire.DriftFinding(
        drift=codec.DRIFT.wire(one.drift),
        key=one.key,
        version=one.version,
        remote_name=one.remote_name,
        remote_version=one.remote_version,
        detail=one.detail,
        repair=shown.repair,
        find_time=codec.timestamp(one.found_at),
    )
