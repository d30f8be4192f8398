"""What `broker run` keeps from its command: everything that the job's identity can be had with."""

from __future__ import annotations

import sys

from tests.live.run.test_standin import DB, Job, Pipelines, job, pipelines, pipelines_authority

__all__ = ["job", "pipelines", "pipelines_authority"]  # fixtures

PYTHON = ["--", sys.executable, "-u", "-c"]
BOTH = ["FetchSecrets", "EndSession"]
LOGIN = {
    "ACTIONS_ID_TOKEN_REQUEST_URL": "https://x/canary", "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "canary",
    "SYSTEM_ACCESSTOKEN": "canary", "SYSTEM_OIDCREQUESTURI": "https://x/canary", "CI_JOB_JWT_V2": "canary",
    "BROKER_TEST_ID_TOKEN": "canary", "BROKER_ID_TOKEN": "canary", "CIRCLE_OIDC_TOKEN_V2": "canary",
    "BITBUCKET_STEP_OIDC_TOKEN": "canary", "BUILDKITE_AGENT_ACCESS_TOKEN": "canary",
}  # fmt: skip
NAMES = f"import os; print(sorted({{*os.environ}} & {{*{sorted(LOGIN)!r}, 'BROKER_ID_TOKEN_FILE'}}))"
KEEPER = """
import contextlib, pathlib
told = []
for one in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError):  # it has ended, or is somebody else's
        if one.joinpath("cmdline").read_bytes().rstrip(b"\\0").endswith(b"run_keeper.py"):
            told.append(one.joinpath("environ").read_bytes())
ours = [one for one in told if b"BESIDE" in one]
print(len(ours), any(b"canary" in one for one in ours))
"""


def test_CL_06_the_command_gets_nothing_that_it_could_log_in_with(job: Job, pipelines: Pipelines) -> None:
    assert job.run("run", "--secret", DB, *PYTHON, NAMES, env=LOGIN) == (0, b"[]\n", b"")
    code, out, _ = job.run("run", "--secret", DB, "--keep-identity", *PYTHON, NAMES, env=LOGIN)
    assert (code, out.decode()) == (0, f"{sorted([*LOGIN, 'BROKER_ID_TOKEN_FILE'])}\n")
    assert pipelines.methods == BOTH * 2
    given = [*PYTHON, "import os; print(os.environ['SYSTEM_ACCESSTOKEN'] == 'app')"]
    code, out, _ = job.run("run", "--secret", "SYSTEM_ACCESSTOKEN=broker://team/db#user", *given, env=LOGIN)
    assert (code, out) == (0, b"True\n")  # what is asked for by name is given


def test_CL_06_nor_is_it_in_the_environment_of_what_tidies_up(job: Job) -> None:
    beside, script = str(job.folder / "beside"), KEEPER.replace("BESIDE", str(job.folder / "beside"))
    assert job.run("run", "--secret", DB, *PYTHON, script, env=LOGIN | {"MARK": beside}) == (0, b"2 False\n", b"")


def test_a_run_within_a_run_is_told_where_its_identity_is(job: Job, pipelines: Pipelines) -> None:
    inner = [sys.executable, "-m", "broker_cli", "run", "--secret", DB, "--", "true"]
    code, _, err = job.run("run", "--secret", DB, "--", *inner, env={"GITHUB_ACTIONS": "true"})
    assert (code, b"IDENTITY_WITHHELD" in err, b"--keep-identity" in err) == (4, True, True)
    assert job.run("run", "--secret", DB, "--keep-identity", "--", *inner)[0] == 0
    assert pipelines.methods == [*BOTH, "FetchSecrets", "FetchSecrets", "EndSession", "EndSession"]
