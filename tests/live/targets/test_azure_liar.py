"""A vault that lies in well-formed answers: what it says is stored, or believed, only where it can be so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.core.errors import BrokerError
from broker.targets.azure_key_vault import kek
from tests.fakes.refusals import refused
from tests.live.targets.test_azure_target import Bench
from tests.servers.azure import target_of
from tests.servers.azure_key_vault import Answer, FakeVault, Request


@pytest.fixture
def bench(premium: FakeVault, tmp_path: Path) -> Bench:
    return Bench(premium, tmp_path)


def lie(vault: FakeVault, method: str, change: Callable[[Any], Any]) -> None:
    """Change the JSON of every good answer to this method."""

    def told(request: Request, answer: Answer) -> Answer:
        return replace(answer, body=change(answer.body)) if request.method == method else answer

    vault.told = told


@pytest.mark.parametrize("kid", [
    "https://evil.example/keys/new/" + "0" * 32, "{url}/keys/other/" + "0" * 32, "{url}/keys/new/latest",
    "{url}/keys/new", "{url}/keys/new/" + "0" * 100_000, "{url}/keys/new/" + "0" * 31 + "\u0000",
])  # fmt: skip
def test_BY_02_a_new_kek_is_only_pinned_under_an_id_that_it_can_have(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, kid: str
) -> None:
    monkeypatch.setattr(kek, "KEK_BITS", 2048)  # patched: as good for this, and made sooner
    named = kid.format(url=bench.vault.url)
    lie(bench.vault, "POST", lambda body: {**body, "key": {**body["key"], "kid": named}})
    refused(
        lambda: target_of(bench.vault, "new", bench.folder).keks.create_wrapping_key("0" * 32), reason="TARGET_REFUSED"
    )


@pytest.mark.parametrize("attributes", ["x", 1.5, [], [[]]])
def test_an_update_whose_answer_is_none_is_told(bench: Bench, attributes: object) -> None:
    version = bench.imported("web")
    lie(bench.vault, "PATCH", lambda body: {**body, "attributes": attributes})
    for act in (bench.port.disable, bench.port.enable):
        with pytest.raises(BrokerError) as caught:
            act("web", version)
        assert caught.value.reason in {"TARGET_REFUSED", "TARGET_CANNOT_DISABLE"}
