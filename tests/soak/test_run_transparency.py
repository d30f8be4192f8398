"""The probes of `broker run` that the usual tests leave out."""

from __future__ import annotations

import pytest

from tests.live.run.test_standin import Job, job, pipelines, pipelines_authority
from tests.live.run.test_transparency import BARE, PROBES, SELDOM, WRAPPED, look

__all__ = ["job", "pipelines", "pipelines_authority"]  # fixtures

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("name", sorted(SELDOM))
def test_P04_P06_P48_as_without_it(job: Job, name: str) -> None:
    assert look(job, PROBES[name], WRAPPED) == look(job, PROBES[name], BARE)
