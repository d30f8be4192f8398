"""A thing of one kind in the place of another, and policy text that reaches beyond itself."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from broker.core.errors import InvalidRequest
from broker.core.kinds import SessionState
from broker.core.policy.cedar import FIRST_POLICY
from tests.fakes.calls import document
from tests.fakes.memory_store import MemoryStore
from tests.fakes.refusals import refused
from tests.unit.sessions.bench import Bench, pipeline


@pytest.fixture
def bench() -> Bench:
    made = Bench(MemoryStore())
    made.add_rule("deploy")
    made.put("app/db")
    return made


def test_AZ_20_a_session_is_no_lease_a_lease_no_session_and_neither_a_token(bench: Bench) -> None:
    found, opening = bench.fetch(pipeline(), "app/db")
    assert opening is not None
    (held,) = [each.lease for each in found]
    assert held is not None
    session = opening.session.id
    revoke = bench.leases.revoke
    refused(lambda: revoke(bench.call("LeaseService/RevokeLeases"), lease=session), reason="LEASE_NOT_FOUND")
    refused(lambda: bench.revoke(session=held.id), reason="SESSION_NOT_FOUND")
    for wrong in (session, held.id, "app/db", f"brs_{held.id}", opening.token.replace(session, held.id)):
        refused(partial(bench.sessions.authenticate, wrong), reason="SESSION_INVALID")
    refused(lambda: bench.fetch(opening.token, session), reason="REFERENCE_INVALID")
    assert bench.revoke(principal=session) == 0
    assert bench.session(session).state is SessionState.ACTIVE


DIRECTIVES = (
    'include "{}";',
    "@import('{}')",
    '#include "{}"\npermit',
    "{{% include '{}' %}}",
    'permit(principal in file("{}"), action, resource);',
)


@pytest.mark.parametrize("directive", DIRECTIVES)
def test_AZ_19_a_policy_has_no_way_to_read_a_file(directive: str, tmp_path: Path) -> None:
    (tmp_path / "more.cedar").write_text("permit (principal, action, resource);")
    text = FIRST_POLICY + directive.format(tmp_path / "more.cedar")
    bench = Bench(MemoryStore())
    with pytest.raises(InvalidRequest) as refused:
        bench.guard.load(document(text, 9))
    assert refused.value.reason == "POLICY_INVALID"
