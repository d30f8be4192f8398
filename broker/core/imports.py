"""Imports: a key version wrapped in the HSM, uploaded, read back and proven at a target."""

from __future__ import annotations

from broker.core import ports
from broker.core.call import Call
from broker.core.guard import Guard
from broker.core.model import Import
from broker.core.page import Page
from broker.core.targets import Connect


class Imports:
    """The noun behind ImportService."""

    def __init__(self, store: ports.Store, hsm: ports.Hsm, guard: Guard, connect: Connect, now: ports.Now) -> None:
        raise NotImplementedError

    def import_key(self, call: Call, name: str, version: int, target: str, remote_name: str) -> Import:
        raise NotImplementedError

    def prove(self, call: Call, name: str, version: int, target: str) -> Import:
        raise NotImplementedError

    def page(self, call: Call, name: str, target: str, after: tuple[str | int, ...], limit: int) -> Page[Import]:
        raise NotImplementedError
