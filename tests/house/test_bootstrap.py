"""What the Makefile's commands do to a machine before they run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
APT = """#!/bin/sh
echo "$@" >> "{log}"
case "$*" in *install*) touch "{tools}/softhsm2-util" && chmod +x "{tools}/softhsm2-util";; esac
"""
SUDO = '#!/bin/sh\nexec "$@"\n'


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the bootstrap reads, with this very environment linked in."""
    tree = tmp_path / "tree"
    (tree / "tests").mkdir(parents=True)
    for name in ("requirements.lock", "pyproject.toml", "tests/bootstrap.py"):
        shutil.copy(ROOT / name, tree / name)
    (tree / ".venv").symlink_to(sys.prefix)
    return tree


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A machine with no command but those that are put here."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("sh", "env", "touch", "chmod"):
        (folder / name).symlink_to(shutil.which(name) or name)
    return folder


def bootstrap(tree: Path, tools: Path, pretend: str = "") -> subprocess.CompletedProcess[str]:
    """Run it for `make dev` on a machine with only ``tools``, after a statement that changes what it sees."""
    program = "import os, runpy, sys; sys.argv[:] = sys.argv[1:]; {}\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-I", "-c", program.format(pretend), str(tree / "tests/bootstrap.py"), "dev"]
    return subprocess.run(command, env={"PATH": str(tools)}, capture_output=True, text=True, check=False)


def script(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def test_another_system_is_told_what_to_install(tree: Path, tools: Path) -> None:
    answer = bootstrap(tree, tools)
    assert answer.returncode == 1
    assert "install what Debian calls softhsm2 " in answer.stderr


def test_without_root_or_sudo_the_command_to_run_is_told(tree: Path, tools: Path) -> None:
    script(tools / "apt-get", APT.format(log=tree / "log", tools=tools))
    answer = bootstrap(tree, tools, "os.geteuid = lambda: 1000")
    assert answer.returncode == 1
    assert "as root, then try again: apt-get install softhsm2" in answer.stderr
    assert not (tree / "log").exists()


def test_only_what_is_missing_is_installed_and_only_once(tree: Path, tools: Path) -> None:
    script(tools / "apt-get", APT.format(log=tree / "log", tools=tools))
    script(tools / "sudo", SUDO)
    first, second = (bootstrap(tree, tools, "os.geteuid = lambda: 1000") for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    update, install = (tree / "log").read_text(encoding="utf-8").splitlines()
    assert update.endswith(" update")
    assert install.endswith(" install --yes --no-install-recommends softhsm2")
    assert second.stderr == ""


def test_an_environment_that_does_not_fit_the_lock_is_noticed(tree: Path, tools: Path) -> None:
    script(tools / "softhsm2-util", SUDO)
    lock = tree / "requirements.lock"
    lock.write_text(lock.read_text(encoding="utf-8").replace("click==", "click==9999."), encoding="utf-8")
    answer = bootstrap(tree, tools)
    assert answer.returncode == 1
    assert "click is " in answer.stderr
    assert Path(sys.executable).exists()  # a linked environment is somebody else's, and stays


def test_an_old_python_is_told_so(tree: Path, tools: Path) -> None:
    answer = bootstrap(tree, tools, "sys.version_info = (3, 9, 2)")
    assert answer.returncode == 1
    assert "Python 3.9.2 is too old: install 3.11 or newer" in answer.stderr
