"""Targets: the registered places keys can be imported to, each with its pinned KEK."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from broker.core import ports
from broker.core.call import Call
from broker.core.guard import Guard
from broker.core.model import Probe, Target
from broker.core.page import Page

Connect = Callable[[str, Mapping[str, str]], ports.Target]
"""Build the port for a kind ("vault") and its settings; InvalidRequest when the settings will not do."""


class Targets:
    """The noun behind TargetService."""

    def __init__(self, store: ports.Store, hsm: ports.Hsm, guard: Guard, connect: Connect, now: ports.Now) -> None:
        raise NotImplementedError

    def create(
        self, call: Call, name: str, kind: str, settings: dict[str, str], expected_kek_thumbprint: str
    ) -> Target:
        raise NotImplementedError

    def get(self, call: Call, name: str) -> Target:
        raise NotImplementedError

    def page(self, call: Call, after: tuple[str | int, ...], limit: int) -> Page[Target]:
        raise NotImplementedError

    def check(self, call: Call, name: str) -> list[Probe]:
        raise NotImplementedError

    def repin(self, call: Call, name: str, expected_kek_thumbprint: str) -> Target:
        raise NotImplementedError

    def delete(self, call: Call, name: str) -> None:
        raise NotImplementedError
