"""``broker status``: one look at whether the broker answers."""

from __future__ import annotations

import time
from typing import Any

import click

from broker_cli.output import Output, formatted
from broker_cli.refusal import Exit
from broker_cli.wire import Wire, remote, repeat
from broker_cli.words import record


@click.command(epilog="Ends with exit code 5 while the broker does not serve.")
@formatted
@remote
def status(wire: Wire, out: Output) -> int:
    """Ask the broker for its health, and whom it takes you for."""
    started = time.monotonic()
    serving = health(wire)
    found: dict[str, Any] = {
        "address": wire.place.address,
        "serving": serving,
        "milliseconds": round((time.monotonic() - started) * 1000),
    }
    out.one("status", found | record(wire.ask("operators", "WhoAmI")))
    return int(Exit.OK if serving else Exit.UNAVAILABLE)


def health(wire: Wire) -> bool:
    """What the broker's health service says of the broker as a whole."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: PLC0415  slow to load

    check = health_pb2_grpc.HealthStub(wire.channel).Check
    request = health_pb2.HealthCheckRequest(service="")
    answer = repeat(lambda: check(request, timeout=wire.timeout), wire.place.address, safe=True)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
