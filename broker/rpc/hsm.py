"""HsmService: what the token is and what it can do."""

# ruff: noqa: D102 (the contract of each RPC stands in its .proto file)

from __future__ import annotations

from broker_api.v1 import hsm_pb2 as wire

from broker.core.call import Call
from broker.core.errors import Unavailable
from broker.core.policy.guard import BROKER, Guard
from broker.core.ports import HsmStatus


class HsmMethods:
    """The RPCs of HsmService."""

    def __init__(self, hsm: HsmStatus, guard: Guard) -> None:
        self._hsm = hsm
        self._guard = guard

    def get_hsm(self, call: Call, _request: wire.GetHsmRequest) -> wire.GetHsmResponse:
        self._guard.check(call, BROKER)
        report = self._hsm.report()
        return wire.GetHsmResponse(
            module=report.module,
            library=report.library,
            token_label=report.token_label,
            token_serial=report.token_serial,
            manufacturer=report.manufacturer,
            model=report.model,
            firmware=report.firmware,
            key_types=[each.value for each in report.key_types],
            oaep_hashes=[each.value for each in report.oaep_hashes],
            exact_wrap=report.exact_wrap,
            one_call_wrap=report.one_call_wrap,
            probes=[wire.Probe(name=each.name, passed=each.passed, detail=each.detail) for each in report.probes],
            features=[wire.Probe(name=each.name, passed=each.passed, detail=each.detail) for each in report.features],
            answering=self._answering(),
        )

    def _answering(self) -> bool:
        try:
            self._hsm.check()
        except Unavailable:
            return False
        return True
