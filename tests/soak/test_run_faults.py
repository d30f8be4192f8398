"""Every fault at every place of `broker run`."""

from __future__ import annotations

import pytest

from tests.live.run.faults import assert_nothing_shown
from tests.live.run.test_standin import Job, Pipelines, job, pipelines, pipelines_authority

__all__ = ["job", "pipelines", "pipelines_authority"]  # fixtures


@pytest.mark.soak
def test_CL_03_none_of_all_faults_shows_a_value(job: Job, pipelines: Pipelines) -> None:
    assert_nothing_shown(job, pipelines, each=9, turn=0)
