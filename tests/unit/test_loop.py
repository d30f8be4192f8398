"""The background loop: no kind of work can keep the others from being done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from broker import app
from broker.core.call import Call


def test_AU_03_many_chores_do_not_keep_heads_from_being_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    time = timedelta()
    done: list[str] = []
    left = [f"key/{number}" for number in range(12)]

    def work(resource: str, _call: Call) -> None:
        nonlocal time
        time += timedelta(seconds=1)
        left.remove(resource)
        done.append("chore")

    def chores() -> Iterator[tuple[str, Callable[[Call], None]]]:
        for resource in list(left):
            yield resource, lambda call, resource=resource: work(resource, call)  # type: ignore[misc]

    def heads() -> list[object]:
        done.append("heads")
        return []

    nothing: Any = SimpleNamespace(check=lambda: None)
    broker: Any = SimpleNamespace(
        hsm=nothing,
        store=SimpleNamespace(check=lambda: None, heads=heads),
        server=SimpleNamespace(set_serving=lambda _serving: None),
        policies=SimpleNamespace(refresh=lambda: None),
        keys=SimpleNamespace(chores=chores),
        renew_certificate=lambda: None,
    )
    monkeypatch.setattr(app, "ticks", lambda: time)
    loop = app.Loop(broker)
    for _ in range(3):
        loop._round()
    assert "".join(each[0] for each in done) == "h" + "c" * 5 + "h" + "c" * 5 + "h" + "c" * 2
