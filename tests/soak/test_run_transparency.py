"""All probes of `broker run`."""

from __future__ import annotations

import pytest

from tests.live.run.test_standin import Job, job, pipelines, pipelines_authority
from tests.live.run.test_transparency import PROBES, assert_as_without_it

__all__ = ["job", "pipelines", "pipelines_authority"]  # fixtures

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("name", PROBES)
def test_P04_P06_P48_as_without_it(job: Job, name: str) -> None:
    assert_as_without_it(job, name)
