"""The job's Python is not ours: what it sets and what lies about reaches its own programs, and `broker` never."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live.run.test_standin import DB, Job, Pipelines, job, pipelines, pipelines_authority

__all__ = ["job", "pipelines", "pipelines_authority"]  # fixtures

SCRIPT = Path(__file__).resolve().parents[3] / "cli/broker"
NAMES = (
    "abc_", "broker", "broker_api", "click", "ctypes", "dataclasses", "enum", "functools", "google", "grpc", "json",
    "logging", "queue", "re", "select", "site_", "socket", "ssl", "subprocess", "token", "tokenize", "traceback",
    "types", "typing",
)  # fmt: skip
SETTINGS = {
    "PYTHONWARNINGS": "error", "PYTHONSTARTUP": "token.py", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONINSPECT": "1",
    "PYTHONOPTIMIZE": "2", "PYTHONIOENCODING": "utf-16", "PYTHONUNBUFFERED": "1", "PYTHONNOUSERSITE": "1",
    "PYTHONHASHSEED": "7", "PYTHONSAFEPATH": "", "PYTHONUSERBASE": "nowhere", "PYTHONTRACEMALLOC": "2",
    "PYTHONBREAKPOINT": "nothing", "PYTHONUTF8": "0", "LC_ALL": "C",
}  # fmt: skip
TELLS = (
    "import json, os, token; found = {n: os.environ[n] for n in os.environ if n[:6] == 'PYTHON'}\n"
    "print(json.dumps([token.MINE, found]))"
)


@pytest.fixture
def hostile(job: Job) -> Path:
    """A folder with modules of the job's that have the names of ours, of libraries and of the standard library."""
    folder = job.folder / "modules"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text("raise SystemExit('a module of the job was loaded')\n")
    (folder / "token.py").write_text("MINE = True\n")
    return folder


def broker(job: Job, where: Path, settings: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[bytes]:
    environment = {name: value for name, value in job.environment.items() if name != "LC_ALL"} | settings
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], cwd=where, env=environment, capture_output=True,
        stdin=subprocess.DEVNULL, timeout=200, check=False,
    )  # fmt: skip


def test_P21_the_jobs_modules_and_settings_are_the_commands_alone(
    job: Job, pipelines: Pipelines, hostile: Path
) -> None:
    settings = SETTINGS | {"PYTHONPATH": str(hostile)}
    run = ["run", "--secret", DB, "--file", "KEY=broker://team/tls#key", "--"]
    alone = hostile.parent / "alone"  # what prints JSON needs modules that the other folder breaks
    alone.mkdir()
    (alone / "token.py").write_text("MINE = True\n")
    done = broker(job, hostile, settings, *run, "env")
    assert (done.returncode, done.stderr) == (0, b"")
    shown = dict(line.split("=", 1) for line in done.stdout.decode().splitlines() if "=" in line)
    assert {name: shown.get(name) for name in settings} == settings
    settings = {"PYTHONPATH": str(alone), "PYTHONUNBUFFERED": "1"}
    done = broker(job, alone, settings, *run, sys.executable, "-c", TELLS)
    assert (done.returncode, done.stderr, json.loads(done.stdout)) == (0, b"", [True, settings])
    assert pipelines.methods == ["FetchSecrets", "EndSession"] * 2


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["fetch", "--format", "env", DB], 0, b"DB="),
        (["key", "--help"], 0, b"Usage: broker key"),
        (["init", "--help"], 0, b"usage:"),
        (["status"], 4, b"[PROFILE_MISSING]"),
        (["--version"], 0, b"broker, version"),
    ],
)
def test_P21_nor_do_they_reach_any_other_command(
    job: Job, hostile: Path, arguments: list[str], code: int, told: bytes
) -> None:
    done = broker(job, hostile, SETTINGS | {"PYTHONPATH": str(hostile)}, *arguments)
    assert (done.returncode, told in done.stdout + done.stderr) == (code, True), done
    assert b"module of the job" not in done.stdout + done.stderr
    assert b"Traceback" not in done.stderr


def test_P21_a_locale_that_python_makes_up_is_not_the_commands(job: Job) -> None:
    """Where it finds the C locale, Python takes another for itself, and writes it into the environment."""
    environment = {name: value for name, value in job.environment.items() if name not in {"LC_ALL", "LANG"}}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "run", "--secret", DB, "--", "env"],
        env=environment,
        capture_output=True,
        check=True,
    )
    names = {line.partition(b"=")[0].decode() for line in done.stdout.splitlines() if line}
    assert names == {*environment, "DB", "BROKER_IDENTITY_WITHHELD"} - {"BROKER_ID_TOKEN_FILE"} | pem_lines(environment)


def pem_lines(environment: dict[str, str]) -> set[str]:
    return {line.partition("=")[0] for line in environment["BROKER_CA_PEM"].splitlines()[1:]}
