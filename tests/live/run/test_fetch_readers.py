"""What `broker fetch` writes, read by the programs that it is written for: each run for real."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from broker_cli import dotenv
from broker_cli.fetch_formats import OF_SHELLS, TEXTS
from broker_cli.refusal import Exit, Refusal

from tests.live.run.test_standin import VALUES, Job, Pipelines, job, pipelines, pipelines_authority
from tests.servers import readers

__all__ = ["job", "pipelines", "pipelines_authority"]  # fixtures

AWKWARD = [
    "", " ", "x", "it's", "it's `touch exploited`", "`touch exploited`", "$(touch exploited)", "${HOME}", "$HOME $x $$",
    "${HOME:-x} ${", "ends-with-backslash\\", "\\\\server\\share", "\\", "\\\\", "a\\b", "C:\\temp\\new\\r", "a\\'b",
    'a\\"b', "line1\r\nline2", "a\rb", "a\r", "a\nb", "a\n", "\n\n a", "a\n#b\nC='d", "a\nX=1\nexport Y", "#b", "a #b",
    "it's #1", "it's\nb", 'say "hi"', '"', "'", "''", "'x'", '"x"', "'\"", '{"a":"b\\nc","d":[1]}', '{"a":"\\\\n"}',
    "  trimmed?  ", "\ta\tb\t", "naïve-päss-🔑", "a!b!!", "100%s %d %n", "50%25 %0A %AZP25", "a;b&c|d>e<f", "*?[a]~",
    "~/x", "{a,b}", "a=b=c", "=", "export X=1", "broker://team/db#password", "a\x01\x1b[0m\x7f", "a\u2028b\u0085c",
    "\ufeffx", "-----BEGIN X-----\nabc\n-----END X-----\n", "]x;y]", "##vso[task.setvariable variable=X]y",
    "::add-mask::x", "<<EOF\nx\nEOF", "a\x0b\x0cb", "kQ9+zR/7pLmN==", "X" * 60_000,
]  # fmt: skip
NAMED = {f"V{number}": value for number, value in enumerate(AWKWARD)}


def parted(format_: str, values: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Those of the values that the format takes, and those that it refuses: all at once, each by its name."""
    fault = fault_in(format_, {name: value.encode() for name, value in values.items()})
    if fault is None:
        return values, {}
    assert (fault.reason, fault.code) == ("VALUE_UNREPRESENTABLE", Exit.USAGE)
    refused = {name: values[name] for name in re.findall(r"\b(\w+) \(", fault.message)}
    assert [name for name, value in refused.items() if len(value) > 12 and value in fault.message] == []
    taken = {name: value for name, value in values.items() if name not in refused}
    assert fault_in(format_, {name: value.encode() for name, value in taken.items()}) is None
    return taken, refused


def fault_in(format_: str, values: dict[str, bytes]) -> Refusal | None:
    try:
        TEXTS[format_](values)
    except Refusal as fault:
        return fault
    return None


def written(format_: str, values: dict[str, str], folder: Path) -> Path:
    file = folder / "file"
    file.write_bytes(TEXTS[format_]({name: value.encode() for name, value in values.items()}).encode())
    return file


def wrong(found: readers.Found, wanted: dict[str, str]) -> dict[str, tuple[str, str | None]]:
    return {name: (value, found.get(name)) for name, value in wanted.items() if found.get(name) != value}


@pytest.mark.parametrize("reader", readers.DOTENV)
def test_P02_every_reader_of_dotenv_reads_back_what_is_written(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    taken, _ = parted("dotenv", NAMED | at_random(300))
    if reader == "systemd":  # which shows no empty one
        taken = {name: value for name, value in taken.items() if value and "$" not in value}
    assert len(taken) > 80
    file = written("dotenv", taken, tmp_path)
    assert wrong(readers.DOTENV[reader](file), taken) == {}
    assert not (tmp_path / "exploited").exists()


def test_P02_what_dotenv_refuses_is_what_some_reader_loses() -> None:
    _, refused = parted("dotenv", NAMED)
    assert set(refused.values()) == {
        "it's `touch exploited`", "${HOME}", "${HOME:-x} ${", "ends-with-backslash\\", "\\\\server\\share", "\\",
        "\\\\", "a\\'b", "line1\r\nline2", "a\rb", "a\r", "'\"", '{"a":"\\\\n"}', "broker://team/db#password",
    }  # fmt: skip


def test_P03_our_own_reader_reads_back_what_is_written(tmp_path: Path) -> None:
    taken, _ = parted("dotenv", NAMED)
    found = dotenv.read(written("dotenv", taken, tmp_path))
    assert {name: line.value for name, line in found.items()} == taken


@pytest.mark.parametrize("name", ["bash", "dash"])
def test_P01_a_shell_evaluates_env_and_runs_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    taken, refused = parted("env", NAMED | at_random(300))
    assert refused == {}
    script = 'eval "$(cat "$1")"; exec "$2" -c "$3"'
    file = written("env", taken, tmp_path)
    command = [name, "-c", script, name, str(file), sys.executable, readers.DUMP]
    ended = subprocess.run(command, env=readers.BARE, capture_output=True, check=True, timeout=200)
    assert (wrong(json.loads(ended.stdout), taken), ended.stderr) == ({}, b"")
    assert list(tmp_path.iterdir()) == [file]


def test_P24_docker_reads_back_what_is_written(tmp_path: Path) -> None:
    taken, refused = parted("docker", NAMED | at_random(300))
    assert all(set(value) & {"\n", "\r"} for value in refused.values())
    assert len(taken) > 150
    file = written("docker", taken, tmp_path)
    assert wrong(readers.docker_rules(file), taken) == {}
    if readers.HAS_DOCKER:
        assert wrong(readers.docker(file), taken) == {}


def test_P24_a_line_is_as_long_as_docker_takes_and_no_longer(tmp_path: Path) -> None:
    name, most = "LONG", "x" * (64 * 1024 - len("LONG=") - 1)
    file = written("docker", {name: most}, tmp_path)
    assert readers.docker_rules(file) == {name: most}
    if readers.HAS_DOCKER:
        assert wrong(readers.docker(file), {name: most}) == {}
    with pytest.raises(Refusal, match="docker takes no line that long"):
        TEXTS["docker"]({name: most.encode() + b"x"})


def test_json_is_read_back(tmp_path: Path) -> None:
    file = written("json", NAMED, tmp_path)
    script = "process.stdout.write(JSON.stringify(JSON.parse(require('fs').readFileSync(process.argv[1]))))"
    ended = subprocess.run([readers.NODE, "-e", script, str(file)], capture_output=True, check=True, timeout=200)
    assert json.loads(file.read_text()) == json.loads(ended.stdout) == NAMED


def test_azure_reads_back_what_is_written() -> None:
    taken, refused = parted("azure", NAMED | at_random(60))
    assert all(set(value) & {"\n", "\r"} or "$(" in value for value in refused.values())
    shown = TEXTS["azure"]({name: value.encode() for name, value in taken.items()})
    variables, masks, others = readers.azure(shown)
    assert (variables, others) == (taken, [])
    assert {value for value in taken.values() if len(value.encode().strip()) >= 4} <= masks
    assert shown.rindex("\n##vso[task.setsecret]") < shown.index("\n##vso[task.setvariable ")


@pytest.mark.parametrize("shell", ["bash", "dash"])
def test_the_names_that_a_shell_keeps_are_refused(shell: str, tmp_path: Path) -> None:
    """Of all variables that bash has, each is read back or refused."""
    script = ["bash", "-c", "compgen -v"]
    listed = subprocess.run(script, env=readers.BARE, capture_output=True, check=True, text=True, timeout=200)
    some = {
        "BASH_ENV",
        "ENV",
        "OPTARG",
        "OPTERR",
        "PS4",
        "HISTFILE",
        "LANG",
        "LC_ALL",
        "SHLVL",
        "PWD",
        "OLDPWD",
        "PATH",
    }
    for name in sorted({*listed.stdout.split(), *some, *OF_SHELLS}):
        if name in OF_SHELLS:
            assert fault_in("env", {name: b"canary"}), name
            continue
        file = tmp_path / "file"
        file.write_text(TEXTS["env"]({name: b"canary"}) + f'echo "${name}"\n')
        ended = subprocess.run(
            [f"/bin/{shell}", str(file)], env=readers.BARE, capture_output=True, check=False, timeout=200
        )
        assert (ended.stdout, ended.returncode) == (b"canary\n", 0), (name, ended)


def at_random(count: int) -> dict[str, str]:
    """More values, made of what means something to some reader."""
    chance, some = random.Random(24), "ab '\"\\$`{}()#=!;&%\t\n\r\u2028é"  # noqa: S311 (the same ones each time)
    return {f"R{number}": "".join(chance.choices(some, k=chance.randrange(1, 8))) for number in range(count)}


def test_P01_a_value_becomes_no_code(job: Job, pipelines: Pipelines) -> None:
    VALUES["team/evil"] = {"value": b"it's `touch exploited`"}
    code, out, err = job.run("fetch", "--format", "dotenv", "PW=broker://team/evil#value")
    assert (code, out, b"VALUE_UNREPRESENTABLE" in err, b"PW" in err, b"exploited" in err) == (
        2,
        b"",
        True,
        True,
        False,
    )
    assert pipelines.methods == ["FetchSecrets", "EndSession"]
    code, out, _ = job.run("fetch", "--format", "env", "PW=broker://team/evil#value")
    shown = subprocess.run(["sh", "-c", 'eval "$1"; printf %s "$PW"', "sh", out], capture_output=True, check=True,
                           cwd=job.folder, timeout=200)  # fmt: skip
    assert (code, shown.stdout, (job.folder / "exploited").exists()) == (0, b"it's `touch exploited`", False)


def test_azure_is_for_azure_alone_and_gitlab_has_no_safe_way(job: Job, pipelines: Pipelines) -> None:
    for format_, reason in (("azure", b"NOT_AZURE"), ("gitlab", b"FORMAT_UNSAFE")):
        code, out, err = job.run(
            "fetch", "--format", format_, "PW=broker://team/db#password", env={"GITLAB_CI": "true"}
        )
        assert (code, out, reason in err, pipelines.methods) == (2, b"", True, [])
    code, out, _ = job.run("fetch", "--format", "azure", "PW=broker://team/db#password", env={"TF_BUILD": "True"})
    variables, masks, others = readers.azure(out.decode())
    wanted = VALUES["team/db"]["password"].decode()
    assert (code, variables, wanted in masks, others) == (0, {"PW": wanted}, True, [])


@pytest.mark.parametrize(
    ("there", "found"),
    [
        (b"", {}),
        (b"OLD=1\n", {"OLD": "1"}),
        (b"OLD=1", {"OLD": "1"}),
        (b"OLD=1\r\n", {"OLD": "1\r"}),
        (b"\xef\xbb\xbfOLD=1", {"OLD": "1"}),
        (b"OLD<<EOF\nx\nEOF", {"OLD": "x"}),
        (b"OLD=<<EOF\nB=2", {"OLD": "<<EOF", "B": "2"}),
        (b"OLD<<A<<B\nx\nA<<B", {"OLD": "x"}),
    ],
)
def test_github_adds_to_a_file_as_it_is(job: Job, there: bytes, found: dict[str, str]) -> None:
    place = job.folder / "github_env"
    place.write_bytes(there)
    environ = {"GITHUB_ACTIONS": "true", "GITHUB_ENV": str(place)}
    assert job.run("fetch", "--format", "github", "PW=broker://team/db#password", env=environ)[0] == 0
    content = place.read_bytes()
    assert content.startswith(there)
    assert readers.github(content) == found | {"PW": VALUES["team/db"]["password"].decode()}


@pytest.mark.parametrize(
    ("there", "reason"),
    [(b"OLD<<EOF\nx\n", b"FILE_UNFINISHED"), ("OLD=1\n".encode("utf-16"), b"FILE_NOT_UTF8")],
)
def test_github_refuses_a_file_in_which_the_value_would_be_lost(job: Job, there: bytes, reason: bytes) -> None:
    place = job.folder / "github_env"
    place.write_bytes(there)
    environ = {"GITHUB_ACTIONS": "true", "GITHUB_ENV": str(place)}
    code, _, err = job.run("fetch", "--format", "github", "PW=broker://team/db#password", env=environ)
    assert (code, reason in err, place.read_bytes()) == (1, True, there)
