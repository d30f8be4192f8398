"""What the tests of the gate share."""

from __future__ import annotations

import threading
from typing import Any

from broker.rpc import table
from tests.servers.edge import (
    plain_services,
)

METHODS = sorted(
    f"/{service.full_name}/{each.name}" for service in table.declared().values() for each in service.methods
)


def raw(channel: Any, path: str, wire: bytes = b"", **options: Any) -> Any:
    return channel.unary_unary(path)(wire, **options)


def sound(path: str) -> bytes:
    """The smallest request of a method that the gate lets through."""
    from tests.unit.rpc.test_plan import fill  # noqa: PLC0415

    method = table.methods(plain_services())[path]
    return bytes(fill(method.plan.kind()).SerializeToString())


def before(part: Any, method: str) -> threading.Event:
    """Set as soon as ``method`` of ``part`` is called."""
    reached, original = threading.Event(), getattr(part, method)

    def signalling(*args: Any) -> Any:
        reached.set()
        return original(*args)

    # Put in its place: that somebody is waited for shows nowhere else.
    setattr(part, method, signalling)
    return reached


class Silent:
    """A stream of requests from which none comes until it is ended."""

    def __init__(self) -> None:
        self.end = threading.Event()

    def __iter__(self) -> Silent:
        return self

    def __next__(self) -> bytes:
        self.end.wait(120)
        raise StopIteration
