"""The rooms of the house: which folders there are, which file of a noun is where, and who may import whom."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.house.sources import ROOT, modules, nodes

TOP = {".ci", ".git", ".github", "broker", "cli", "docs", "protos", "softhsm", "tests"}
MADE = {
    ".hypothesis", ".import_linter_cache", ".make", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".venv",
    "__pycache__", "build", "dist",
}  # fmt: skip
ROOMS = {
    "broker": {"auth", "core", "hsm", "rpc", "store", "targets"},
    "broker/auth": {"mtls", "oidc", "session"},
    "broker/core": {
        "approvals",
        "audit",
        "drift",
        "authorities",
        "gate",
        "imports",
        "inventory",
        "keys",
        "leases",
        "operations",
        "operators",
        "policy",
        "ports",
        "rotations",
        "schedules",
        "secrets",
        "sessions",
        "targets",
        "trust",
    },
    "broker/hsm": set(),
    "broker/rpc": set(),
    "broker/store": {"migrations"},
    "broker/targets": {"azure_key_vault", "vault"},
    "broker/targets/azure_key_vault": set(),
    "broker/targets/vault": set(),
    "cli": {"broker_cli"},
    "protos": {"broker_api"},
    "protos/broker_api": {"v1"},
    "tests": {
        "bench",
        "contracts",
        "crash",
        "fakes",
        "house",
        "live",
        "readers",
        "servers",
        "soak",
        "unit",
        "wire",
        "worlds",
    },
    "tests/servers": {"azure_key_vault"},
}
NOUNS = {path.stem for path in (ROOT / "protos/broker_api/v1").glob("*.proto")} - {"traits"}  # says what a method is
IN_THE_CORE = {"policies": "policy"}
ONLY_ON_THE_WIRE = {"hsm"}  # the HSM is a port: the core has no noun of its own for it


def folders(place: Path) -> set[str]:
    """The folders in ``place`` that somebody put there; empty ones are not in the repository."""
    return {path.name for path in place.iterdir() if path.is_dir() and any(path.iterdir())} - MADE


def test_every_folder_is_declared() -> None:
    assert folders(ROOT) <= TOP
    for room, declared in ROOMS.items():
        assert folders(ROOT / room) <= declared, f"{room} has a folder that ROOMS does not declare"


def test_a_noun_is_a_room_of_the_core() -> None:
    assert {IN_THE_CORE.get(noun, noun) for noun in NOUNS - ONLY_ON_THE_WIRE} <= ROOMS["broker/core"]


def test_nothing_in_the_core_belongs_to_one_neighbour_alone() -> None:
    """A module that only one other room of the core uses, and nobody else, stands in the wrong room."""
    users = importers()
    strays = {
        module: sorted(found)
        for module, found in users.items()
        if len(found) == 1 and found <= ROOMS["broker/core"] - {room_of(module)}
    }
    assert strays == {}


def importers() -> dict[str, set[str]]:
    """Who imports each module of the core: rooms of the core, or files and folders beside it."""
    found: dict[str, set[str]] = {}
    for file in modules("broker"):
        for module in imported(file):
            found.setdefault(module, set()).add(room_of(".".join(file.relative_to(ROOT).with_suffix("").parts)))
    return found


def imported(file: Path) -> set[str]:
    """The modules of the core that a file imports."""
    names = set[str]()
    for node in nodes(file):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("broker.core"):
            names |= {node.module, *(f"{node.module}.{each.name}" for each in node.names)}
    return {name for name in names if (ROOT / f"{name.replace('.', '/')}.py").is_file()}


def room_of(module: str) -> str:
    """The room of the core that a module stands in; of one that stands beside the rooms, its own name."""
    parts = module.removeprefix("broker.core.").split(".")
    return parts[0] if module.startswith("broker.core.") else module


def test_a_noun_has_the_same_file_name_in_every_room() -> None:
    assert NOUNS
    places = {
        "broker/rpc": NOUNS,
        "cli/broker_cli": NOUNS,
    }
    absent = [
        f"{room}/{noun}.py" for room, nouns in places.items() for noun in sorted(nouns) if not file_of(room, noun)
    ]
    assert absent == []


def file_of(room: str, noun: str) -> bool:
    return (ROOT / room / f"{noun}.py").is_file()


PLANTS = {
    "broker/core/planted.py": "import broker.store\nimport socket\n",
    "broker/store/planted.py": "import broker.hsm\nimport pkcs11\nimport hvac\nimport grpc\nimport click\n",
    "broker/hsm/planted.py": "import sqlalchemy\nimport tests\n",
    "broker/auth/__init__.py": "",
    "broker/auth/planted/__init__.py": "import broker.targets.vault\n",
    "broker/targets/vault/planted.py": "import broker.targets.azure_key_vault\nimport tests.servers.azure_key_vault\n",
    "broker/utils/__init__.py": "",
    "broker/rpc/planted_a.py": "import broker.rpc.planted_b\n",
    "broker/rpc/planted_b.py": "import broker.rpc.planted_a\n",
    "cli/broker_cli/planted.py": "import broker.core\n",
}


SETTLES = (
    "broker/core/once.py",
    "broker/core/operations/running.py",
    "broker/core/gate/gate.py",
    "broker/core/imports/",
)
"""What may say that a call is closed."""


def test_no_noun_settles_a_call_by_hand() -> None:
    modules = {str(path.relative_to(ROOT)): path for path in (ROOT / "broker").rglob("*.py")}
    by_hand = {name for name, path in modules.items() if "call.closed = " in path.read_text(encoding="utf-8")}
    assert by_hand
    assert not [name for name in by_hand if not name.startswith(SETTLES)]


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(str(tree / root) for root in (".", "cli", "protos"))
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()"]
    return subprocess.run(
        [*command, "--no-cache", "--no-logo"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_import_rule_bites(tmp_path: Path) -> None:
    for name in ("broker", "cli", "protos"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name, text in PLANTS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    answer = lint(tmp_path)
    assert answer.returncode == 1, answer.stderr
    assert re.findall(r"^.* KEPT.*$", answer.stdout, re.MULTILINE) == []
    assert answer.stdout.count(" BROKEN") == (ROOT / "pyproject.toml").read_text().count(
        "[[tool.importlinter.contracts]]"
    )
    assert "broker.utils" in answer.stdout
    assert "broker.targets.vault.planted -> tests" in answer.stdout, "a stand-in can be imported"
