"""What the house is built from and what leaves it: the lock, the stubs, the wheel, the commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from sysconfig import get_path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PINS = {
    requirement.name: Version(str(requirement.specifier).removeprefix("=="))
    for requirement in (Requirement(line.rstrip("\\ ")) for line in LOCK.splitlines() if line[:1].isalnum())
}
FLOORS = {
    "authlib": "1.7.3",
    "cedarpy": "4.12",
    "cryptography": "50.0.0",
    "grpcio": "1.68",
    "joserfc": "1.7.4",
    "protobuf": "6.33.5",  # CVE-2026-0994
    "pyjwt": "2.15.1",
}


@pytest.mark.parametrize("name", sorted(FLOORS))
def test_SC_01_no_locked_version_is_known_bad(name: str) -> None:
    assert name not in PINS or PINS[name] >= Version(FLOORS[name])


def test_SC_01_every_dependency_is_locked_at_a_version_the_project_accepts() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = [Requirement(text) for text in (*project["project"]["dependencies"], *project["dependency-groups"]["dev"])]
    unmet = [str(one) for one in asked if PINS.get(one.name.lower(), Version("0")) not in one.specifier]
    assert unmet == []


def test_SC_02_every_locked_file_has_its_hash_and_no_place_of_origin() -> None:
    stanzas = re.split(r"\n(?=[a-z0-9])", LOCK)
    assert len(stanzas) == len(PINS)
    assert [stanza.split("\n", 1)[0] for stanza in stanzas if "--hash=sha256:" not in stanza] == []
    assert re.findall(r"https?:|file:|://|--(?:extra-)?index-url|--find-links|^-e .*|@ ", LOCK, re.MULTILINE) == []


def test_SC_02_nothing_but_this_project_runs_code_at_interpreter_start() -> None:
    """A .pth line that begins with ``import`` is code that runs in every process (how LiteLLM was backdoored)."""
    lines = {
        f"{path.name}: {line[:60]}"
        for path in Path(get_path("purelib")).glob("*.pth")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith(("import ", "import\t"))
    }
    assert {line for line in lines if not line.startswith("distutils-precedence.pth: ")} == set()


def make(tree: Path, target: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PYTHON"))}
    return subprocess.run(
        ["make", "--no-print-directory", target], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """As much of the repository as generating stubs and pages needs."""
    for name in ("protos", "cli", "broker", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests/house").mkdir(parents=True)
    for name in (
        "Makefile", "requirements.lock", "pyproject.toml", "tests/bootstrap.py", "tests/house/errors_page.py",
    ):  # fmt: skip
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


def test_SC_05_a_stub_that_differs_from_its_proto_or_has_none_is_noticed(tree: Path) -> None:
    (tree / "protos/broker_api/v1/left_over_pb2.py").write_text("", encoding="utf-8")
    proto = tree / "protos/broker_api/v1/hsm.proto"
    proto.write_text(proto.read_text(encoding="utf-8").replace("bool answering", "bool answers"), encoding="utf-8")
    answer = make(tree, "fresh")
    assert answer.returncode != 0
    differ = set(re.findall(r"(?m)^(?:diff .*/|Only in .*: )(\w+_pb2\.py)$", answer.stdout))
    assert differ == {"hsm_pb2.py", "left_over_pb2.py"}, answer.stdout + answer.stderr
    assert "run 'make protos'" in answer.stdout


def test_SC_05_the_stubs_are_what_the_protos_give_and_a_page_that_differs_is_noticed(tree: Path) -> None:
    """The page of the refusals is looked at once the stubs are found to be as they should."""
    page = tree / "docs/errors.md"
    page.write_text(page.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    answer = make(tree, "fresh")
    assert answer.returncode != 0
    assert answer.stdout == ""
    assert "run 'make errors'" in answer.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, check=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_our_import_names_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/", 1)[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith((".dist-info", ".data"))} == {
        "broker",
        "broker_cli",
        "broker_api",
    }


def test_the_wheel_holds_every_file_of_ours_and_none_of_them_is_a_test_or_a_fake(wheel: zipfile.ZipFile) -> None:
    shipped = {name for name in wheel.namelist() if not re.search(r"\.(dist-info|data)/", name)}
    written = {
        str(path.relative_to(root))
        for root in (ROOT, ROOT / "cli", ROOT / "protos")
        for package in ("broker", "broker_cli", "broker_api")
        for path in (root / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == written
    assert [name for name in shipped if re.search(r"(^|/)(tests?|conftest|test_\w+|fake)(/|\.py)", name)] == []


def test_the_wheel_brings_the_command_and_the_licence(wheel: zipfile.ZipFile) -> None:
    (script,) = [one for one in wheel.infolist() if ".data/" in one.filename]
    assert script.filename.endswith(".data/scripts/broker")
    assert script.external_attr >> 16 & 0o111 == 0o111
    assert wheel.read(script).startswith(b"#!python\n")  # what installers put their Python in the place of
    assert [name for name in wheel.namelist() if name.endswith("/licenses/LICENSE")]


def test_CI_runs_the_test_command_of_the_readme() -> None:
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert re.findall(r"^exec (.*)$", ci, re.MULTILINE) == ["make test"]
    assert "\nmake test\n" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert os.access(ROOT / ".ci/run", os.X_OK)
