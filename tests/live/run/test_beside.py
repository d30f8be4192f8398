"""`broker run --file`: the folder in memory is the command's to write into, and goes with all that is in it."""

from __future__ import annotations

import os
import select
import subprocess
from pathlib import Path

import pytest

from tests.live.run.test_job import PYTHON, READY, secrets_in_memory
from tests.live.run.test_standin import Job, job, pipelines, pipelines_authority

__all__ = ["job", "pipelines", "pipelines_authority", "secrets_in_memory"]  # fixtures

pytestmark = pytest.mark.usefixtures("secrets_in_memory")


def test_CL_09_files_are_gone_whatever_the_command_put_beside_them(job: Job) -> None:
    script = (
        "import os; where=os.path.dirname(os.environ['KEY'])\n"
        "for name in ('.a', 'z'): os.mkdir(f'{where}/{name}'); open(f'{where}/{name}/lock', 'w').close()\n"
        "print(where)"
    )
    code, out, err = job.run("run", "--file", "KEY=broker://team/tls#key", *PYTHON, script)
    assert (code, err) == (0, b"")
    assert not Path(out.decode().strip()).exists()


def test_CL_09_nor_does_a_wrapper_that_is_killed_leave_them(job: Job) -> None:
    script = READY + "w=os.path.dirname(os.environ['KEY']); os.mkdir(w + '/.a'); print(w); sys.stdin.readline()"
    with job.start("run", "--file", "KEY=broker://team/tls#key", *PYTHON, script, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        where = Path(process.stdout.readline().decode().strip())
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        watched = [os.pidfd_open(int(one)) for one in children]
        assert where.exists()
        process.kill()
        process.wait(200)
        for one in watched:
            assert select.select([one], [], [], 60)[0], "it lives on"
            os.close(one)
    assert not where.exists()
