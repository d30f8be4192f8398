"""`broker run` as the first process of a container: it looks after orphans, and ends with its command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.live.run.test_standin import COMMAND, DB, Job, Pipelines, job, pipelines, pipelines_authority

__all__ = ["job", "pipelines", "pipelines_authority"]  # fixtures

CONTAINER = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]
RUN = [*COMMAND, "run", "--secret", DB, "--"]
PYTHON = [sys.executable, "-u", "-c"]
BOTH = ["FetchSecrets", "EndSession"]

# Children of children that lose their parents, and end: told are those that nobody has let go of.
ORPHANS = """
import os, pathlib, sys, time
for _ in range(20):
    if not os.fork():
        if not os.fork():
            time.sleep(0.05)
        os._exit(0)
    os.wait()
def zombies():
    texts = [one.read_text() for one in pathlib.Path("/proc").glob("[0-9]*/stat")]
    return [text for text in texts if text.rpartition(")")[2].split()[0] == "Z"]
def others():
    return len(list(pathlib.Path("/proc").glob("[0-9]*"))) - 4  # the wrapper, its keeper, the witness and we
until = time.monotonic() + 60
while (others() > 0 or zombies()) and time.monotonic() < until:
    time.sleep(0.02)
print(os.getppid(), others(), zombies())
"""


def start(job: Job, *command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*CONTAINER, *RUN, *command], env=job.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_P22_orphans_are_let_go(job: Job, pipelines: Pipelines) -> None:
    with start(job, *PYTHON, ORPHANS) as process:
        out, err = process.communicate(timeout=200)
    assert (process.returncode, out, err) == (0, b"1 0 []\n", b"")
    assert pipelines.methods == BOTH


@pytest.mark.parametrize(("command", "code"), [("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)])
def test_P22_the_container_ends_with_the_command(job: Job, pipelines: Pipelines, command: str, code: int) -> None:
    """Process 1 cannot end by a signal that it sends itself; what is left behind ends with the container."""
    with start(job, "sh", "-c", f"sleep 997 & printf 'said s3c'; {command}") as process:
        out, err = process.communicate(timeout=200)
    assert (process.returncode, out, err) == (code, b"said s3c", b"")
    assert pipelines.methods == BOTH


def test_P22_a_signal_from_outside_ends_the_command(job: Job, pipelines: Pipelines) -> None:
    """As `docker stop` sends it: to process 1 alone."""
    with start(job, "sh", "-c", "echo ready; sleep 997") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        (first,) = map(int, subprocess.check_output(["pgrep", "-P", str(process.pid)]).split())
        os.kill(first, signal.SIGTERM)
        assert process.wait(200) == 143
    assert pipelines.methods == BOTH
