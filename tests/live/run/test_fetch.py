"""`broker fetch`: what each format writes, what is refused before anything is fetched, and how the session ends."""

from __future__ import annotations

import base64
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import pytest
from broker_cli.dotenv import read
from broker_cli.fetch import FORMATS
from broker_cli.mask import Masker, spoken

from tests.live.run.test_standin import PASSWORD, VALUES, Job, Pipelines, job, pipelines, pipelines_authority

__all__ = ["job", "pipelines", "pipelines_authority"]  # fixtures

BOTH = ["FetchSecrets", "EndSession"]
REF = "broker://team/db#password"
KEY = "KEY=broker://team/tls#key"


def test_json_names_what_was_not_named(job: Job, pipelines: Pipelines) -> None:
    code, out, err = job.run("fetch", "--format", "json", "broker://team/db", "Mine=" + REF, "ALL=broker://team/pin")
    told = {"DB_PASSWORD": PASSWORD.decode(), "DB_USER": "app", "Mine": PASSWORD.decode(), "ALL_PIN": "123"}
    assert (code, json.loads(out), err) == (0, told, b"")
    assert list(pipelines.calls[0][2].references) == ["team/db", "team/db#password", "team/pin"]
    assert pipelines.methods == BOTH


def test_env_is_what_a_shell_reads_back(job: Job) -> None:
    code, out, _ = job.run("fetch", "--format", "env", "DB=" + REF, KEY)
    assert code == 0
    script = (
        out
        + b"\nexec "
        + sys.executable.encode()
        + b' -c \'import os; print([os.environb[b"DB"], os.environb[b"KEY"]])\''
    )
    shown = subprocess.run(["sh"], input=script, stdout=subprocess.PIPE, check=True, timeout=200).stdout
    assert shown.decode().strip() == repr([PASSWORD, VALUES["team/tls"]["key"]])


def test_dotenv_is_what_run_reads_back(job: Job) -> None:
    code, out, _ = job.run("fetch", "--format", "dotenv", "DB=" + REF, KEY)
    (job.folder / "env").write_bytes(out)
    found = {name: line.value.encode() for name, line in read(job.folder / "env").items()}
    assert (code, found) == (0, {"DB": PASSWORD, "KEY": VALUES["team/tls"]["key"]})
    assert b"DB='" in out


def test_CL_02_files_are_new_and_private(job: Job, pipelines: Pipelines) -> None:
    out = job.folder / "out"
    code, shown, _ = job.run("fetch", "--format", "file", "--out", str(out), KEY, "broker://team/blob")
    assert (code, shown, pipelines.methods) == (0, b"", BOTH)
    assert {one.name: one.read_bytes() for one in out.iterdir()} == {
        "KEY": VALUES["team/tls"]["key"],
        "BLOB_BYTES": VALUES["team/blob"]["bytes"],
    }
    assert [oct(one.stat().st_mode) for one in (out, *sorted(out.iterdir()))] == ["0o40700", "0o100600", "0o100600"]
    assert job.run("fetch", "--format", "file", "--out", str(out), KEY)[0] == 7
    assert pipelines.methods == BOTH


def github(job: Job) -> dict[str, str]:
    (job.folder / "github_env").write_bytes(b"OLD=1\n")
    return {"GITHUB_ACTIONS": "true", "GITHUB_ENV": str(job.folder / "github_env")}


def around(job: Job) -> dict[str, str]:
    """What each of the CIs sets."""
    return github(job) | {"TF_BUILD": "True"}


def variables(text: str) -> dict[str, str]:
    """What the runner makes of the file."""
    return {name: value for name, _, value in re.findall(r"^(\w+)<<(\w+)\n(.*?)\n\2$", text, re.DOTALL | re.MULTILINE)}


def test_CL_10_github_is_told_every_value_and_line_and_then_sets(job: Job) -> None:
    environ = github(job)
    code, out, err = job.run("fetch", "--format", "github", "DB=" + REF, KEY, env=environ)
    assert (code, err) == (0, b"")
    lines = out.decode().splitlines()
    assert all(line.startswith("::add-mask::") for line in lines)
    told = {
        line.removeprefix("::add-mask::").replace("%0A", "\n").replace("%0D", "\r").replace("%25", "%").encode()
        for line in lines
    }
    assert len(told) == len(lines)
    wanted = {PASSWORD, base64.b64encode(PASSWORD), *VALUES["team/tls"]["key"].splitlines()[1:-1]}
    assert wanted <= told
    assert told == {form.encode() for form in spoken([PASSWORD, VALUES["team/tls"]["key"]])}
    assert not {b"-----BEGIN KEY-----", b"-----END KEY-----"} & told  # every key has these
    text = (job.folder / "github_env").read_text()
    assert text.startswith("OLD=1\n")
    assert variables(text) == {"DB": PASSWORD.decode(), "KEY": VALUES["team/tls"]["key"].decode()}
    delimiters = re.findall(r"<<(\w+)", text)
    assert len(set(delimiters)) == 2
    assert all(len(one) > 32 for one in delimiters)


def test_github_refuses_what_it_may_not_set(job: Job) -> None:
    environ = github(job)
    for name in ("NODE_OPTIONS", "node_options", "GITHUB_TOKEN", "RUNNER_TEMP"):
        code, out, err = job.run("fetch", "--format", "github", f"{name}={REF}", env=environ)
        assert (code, out, b"NAME_RESERVED" in err) == (2, b"", True)
    assert (job.folder / "github_env").read_bytes() == b"OLD=1\n"


@pytest.mark.parametrize("format_", FORMATS)
def test_SC_08_a_secret_taken_whole_sets_nothing_that_programs_obey(
    job: Job, pipelines: Pipelines, format_: str
) -> None:
    out = job.folder / "out"
    to = ["--out", str(out)] if format_ == "file" else []
    code, shown, err = job.run("fetch", "--format", format_, *to, "broker://team/ld", env=around(job))
    assert (code, shown, out.exists(), pipelines.methods) == (2, b"", False, BOTH)
    assert b"NAME_RESERVED" in err
    assert b"LD_PRELOAD=broker://team/ld#preload" in err
    assert b"evil" not in err
    assert (job.folder / "github_env").read_bytes() == b"OLD=1\n"
    code, _, _ = job.run("fetch", "--format", format_, *to, "broker://team/ld#preload", env=around(job))
    assert (code, pipelines.methods) == (2, BOTH)  # known before anything is fetched
    code, _, err = job.run("fetch", "--format", format_, *to, "LD_PRELOAD=broker://team/ld#preload", env=around(job))
    assert (code, err.replace(str(out).encode(), b"")) == (0, b"broker: 1 files written to .\n" if to else b"")


def test_github_masks_come_before_a_variable_that_cannot_be_set(job: Job) -> None:
    environ = github(job)
    (job.folder / "link").symlink_to(job.folder / "github_env")
    os.mkfifo(job.folder / "pipe")
    for place in ("link", "pipe", "none", "."):
        code, out, err = job.run(
            "fetch", "--format", "github", "DB=" + REF, env=environ | {"GITHUB_ENV": str(job.folder / place)}
        )
        assert (code, out.startswith(b"::add-mask::"), PASSWORD in err) == (1, True, False)
    assert (job.folder / "github_env").read_bytes() == b"OLD=1\n"


def test_github_elsewhere_is_refused_before_anything_is_fetched(job: Job, pipelines: Pipelines) -> None:
    for environ in ({}, {"GITHUB_ENV": str(job.folder / "x")}, {"GITHUB_ACTIONS": "true"}):
        code, out, err = job.run("fetch", "--format", "github", REF, env=environ)
        assert (code, out, b"NOT_GITHUB" in err) == (2, b"", True)
    assert pipelines.methods == []


def test_a_short_value_is_not_made_a_mask(job: Job) -> None:
    code, out, err = job.run("fetch", "--format", "github", "broker://team/pin#pin", env=github(job))
    assert (code, out, b"PIN_PIN: shorter than 4 bytes" in err) == (0, b"", True)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--format", "json", "canary"], b"NAME_INVALID"),
        (["--format", "json", "A=canary"], b"REFERENCE_INVALID"),
        (["--format", "file", REF], b"OUT_MISSING"),
        (["--format", "json", "--out", "x", REF], b"OUT_MISSING"),
    ],
)
def test_CL_01_what_is_wrong_is_said_before_anything_is_fetched(
    job: Job, pipelines: Pipelines, arguments: list[str], reason: bytes
) -> None:
    code, out, err = job.run("fetch", *arguments)
    assert (code, out, reason in err, b"canary" in err, pipelines.methods) == (2, b"", True, False, [])


@pytest.mark.parametrize("arguments", [["A=" + REF, "A=broker://team/db#user"], ["broker://team/blob"]])
def test_what_cannot_be_written_ends_the_session_all_the_same(
    job: Job, pipelines: Pipelines, arguments: list[str]
) -> None:
    code, out, _ = job.run("fetch", "--format", "json", *arguments)
    assert (code, out, pipelines.methods) == (2, b"", BOTH)


def test_kept_sessions_run_out_by_themselves_and_print_no_token(job: Job, pipelines: Pipelines) -> None:
    code, out, err = job.run("fetch", "--format", "json", "--keep", "--ttl", "900", "A=" + REF)
    assert (code, json.loads(out), pipelines.methods) == (0, {"A": PASSWORD.decode()}, ["FetchSecrets"])
    assert re.fullmatch(rb"broker: session s-1 lives until [-0-9]+ [:0-9]+ UTC\.\n", err)
    assert pipelines.calls[0][2].ttl.seconds == 900


def test_a_refusal_writes_nothing(job: Job, pipelines: Pipelines) -> None:
    pipelines.failures = {"FetchSecrets": [(grpc.StatusCode.NOT_FOUND, "SECRET_UNKNOWN", "There is no such secret.")]}
    out = job.folder / "out"
    code, shown, err = job.run("fetch", "--format", "file", "--out", str(out), KEY)
    assert (code, shown, out.exists()) == (6, b"", False)
    assert b"SECRET_UNKNOWN" in err


def test_a_closed_pipe_ends_the_session(job: Job, pipelines: Pipelines) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code, _, err = job.run("fetch", "--format", "json", REF, stdout=writing)
    os.close(writing)
    assert (code, err, pipelines.methods) == (141, b"", BOTH)


def test_a_signal_ends_the_session(job: Job, pipelines: Pipelines) -> None:
    never = threading.Event()
    pipelines.before = lambda method: never.wait(20) if method == "FetchSecrets" else None
    with job.start("fetch", "--format", "json", REF) as process:
        pipelines.wait_for("FetchSecrets")
        process.terminate()
        out, err = process.communicate(timeout=200)
    never.set()
    assert (process.returncode, out, err) == (-signal.SIGTERM, b"", b"")


def test_CL_02_nothing_is_shown_on_a_terminal_unless_asked(job: Job, pipelines: Pipelines) -> None:
    for more, code in (([], 2), (["--reveal"], 0)):
        ours, theirs = pty.openpty()
        ended = job.run("fetch", "--format", "env", "DB=" + REF, *more, stdout=theirs)
        os.close(theirs)
        shown = os.read(ours, 65536) if code == 0 else b""
        os.close(ours)
        assert (ended[0], PASSWORD in shown, b"--reveal" in ended[2]) == (code, code == 0, code != 0)
    assert pipelines.methods == BOTH


def test_help_and_completion_stay_light(job: Job) -> None:
    heavy = "{'grpc', 'google', 'cryptography', 'rich', 'ssl', 'urllib.request', 'ctypes'}"
    for command in ("run", "fetch"):
        script = (
            f"import sys\nfrom broker_cli.main import run\nassert run(['{command}', '--help']) == 0\n"
            f"assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)\n"
        )
        subprocess.run(
            [sys.executable, "-c", script], env=job.environment, check=True, stdout=subprocess.DEVNULL, timeout=200
        )


def test_nothing_of_a_session_is_on_a_disk(job: Job) -> None:
    before = {path: path.stat().st_mtime_ns for path in job.folder.rglob("*")}
    assert job.run("fetch", "--format", "json", REF, cwd=job.folder, env={"HOME": str(job.folder)})[0] == 0
    assert {path: path.stat().st_mtime_ns for path in Path(job.folder).rglob("*")} == before


def test_CL_08_what_fails_after_the_fetch_shows_nothing_of_what_was_fetched(job: Job, pipelines: Pipelines) -> None:
    (job.folder / "taken").mkdir()
    wholes = [f"A{number}={one}" for number, one in enumerate((REF, "broker://team/tls#key", "broker://team/blob"))]
    options = [word for whole in wholes for word in ("--secret", whole)]
    for words, wanted in (
        (["run", *options[:4], "--", "/no/such/program"], 127),
        (["run", *options[:4], "--", "sh", "-c", "exit 3"], 3),
        (["run", *options[:4], "--", str(job.folder)], 126),
        (["run", *options, "--", "true"], None),
        (["fetch", "--format", "env", *wholes], None),
        (["fetch", "--format", "file", "--out", str(job.folder / "taken"), *wholes], None),
        (["fetch", "--format", "file", "--out", "/proc/none", *wholes], None),
    ):
        code, out, err = job.run(*words)
        assert code == wanted if wanted else code != 0, (words, code, err)
        for value in (one for fields in VALUES.values() for one in fields.values() if len(one) > 8):
            masker = Masker([value])
            assert masker.feed(out + err) + masker.finish() == out + err, words
    assert pipelines.methods.count("FetchSecrets") == pipelines.methods.count("EndSession") >= 3
    assert list((job.folder / "taken").iterdir()) == []


def test_P45_the_ca_in_one_line_or_with_escapes_leads_to_the_broker(job: Job, pipelines: Pipelines) -> None:
    pem = job.environment["BROKER_CA_PEM"]
    for form in (pem.replace("\n", "\\n"), pem.replace("\n", " "), "\ufeff" + pem.replace("\n", "\r\n")):
        assert job.run("fetch", "--format", "json", "A=" + REF, env={"BROKER_CA_PEM": form})[0] == 0
    (job.folder / "ca.pem").write_bytes(base64.b64encode(pem.encode()))
    assert job.run("fetch", "--format", "json", "A=" + REF, "--ca-file", str(job.folder / "ca.pem"))[0] == 0
    asked = len(pipelines.methods)
    code, _, err = job.run("fetch", "--format", "json", "A=" + REF, env={"BROKER_CA_PEM": pem[:-30]})
    assert (code, b"CA_INVALID" in err, len(pipelines.methods)) == (2, True, asked)
