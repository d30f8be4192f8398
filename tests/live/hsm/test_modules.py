"""Any PKCS#11 module: what it exports, and why one cannot be loaded."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pkcs11
import pytest

from broker.core.kinds import KeyType
from broker.hsm.config import HsmConfig
from broker.hsm.functions import list_of
from broker.hsm.tokens import find_softhsm
from tests.contracts.hsm.keys import ALGORITHMS, fresh
from tests.fakes.refusals import told_by
from tests.servers.modules import compiled
from tests.servers.softhsm import KeysHsm, alone, make_token

_FORWARDS = """
#include <dlfcn.h>
static void *real(const char *name) { return dlsym(dlopen("%s", RTLD_NOW | RTLD_LOCAL), name); }
"""
_LIST = """
unsigned long C_GetFunctionList(void **list) {
  unsigned long (*get)(void **);
  *(void **)&get = real("C_GetFunctionList");
  return get(list);
}
"""
_INTERFACE = """
struct interface { const char *name; void *list; unsigned long flags; };
static struct interface only = {"PKCS 11", 0, 0};
unsigned long C_GetInterface(const char *name, unsigned char *version, struct interface **found, unsigned long flags) {
  unsigned long (*get)(void **);
  *(void **)&get = real("C_GetFunctionList");
  if (version && (version[0] != 2 || version[1] != 40)) return 7;
  *found = &only;
  return get(&only.list);
}
"""


def started(config: HsmConfig) -> str:
    """ "ok", or why it was refused."""
    return told_by(lambda: KeysHsm(config).close())


def config_for(module: Path, folder: Path) -> HsmConfig:
    pin = folder / "pin-file"
    pin.touch(0o600)
    pin.write_text("1234")
    return HsmConfig(module=module, token_label="x", pin_file=pin)


# ---- K03: what it exports -----------------------------------------------------------------------------------------


def _served(config: HsmConfig) -> list[str]:
    """Make, use, lose and use again, destroy: by a module that is reached in whatever way."""
    hsm = KeysHsm(config)
    key = fresh(hsm, KeyType.EC_P256)
    (algorithm,) = ALGORITHMS[KeyType.EC_P256]
    told = [str(len(hsm.sign(key, algorithm, [b"m"])))]
    with hsm.paused():
        hsm.sessions.module.finalize()
    told.append(str(len(hsm.sign(key, algorithm, [b"m"]))))
    hsm.destroy(key)
    told += [one.name for one in hsm.report().features[:2] if one.passed]
    hsm.close()
    return told


def _proxy() -> Path:
    return next(Path("/usr/lib").glob("*/libp11-kit.so.0"))


def _each_served(config: HsmConfig, modules: dict[str, Path]) -> dict[str, list[str]]:
    return {kind: _served(config.model_copy(update={"module": module})) for kind, module in modules.items()}


def test_K03_a_module_is_reached_through_its_function_list(tmp_path: Path) -> None:
    forwards = _FORWARDS % find_softhsm()
    modules = {
        "p11-kit's proxy": _proxy(),
        "the list alone": compiled(tmp_path, "list", forwards + _LIST),
        "list and interface": compiled(tmp_path, "both", forwards + _LIST + _INTERFACE),
        "a link": _link(tmp_path, find_softhsm()),
    }
    told = alone(_each_served, make_token(tmp_path / "token"), modules)
    assert told == {kind: ["1", "1", "audit key and certificates", "secrets and database"] for kind in modules}


def _link(folder: Path, module: Path) -> Path:
    (folder / "link.so").symlink_to(module)
    return folder / "link.so"


def _relative(config: HsmConfig) -> tuple[str, str, str]:
    bare = started(config.model_copy(update={"module": Path("libp11-kit.so.0")}))
    here = str(Path.cwd())
    os.chdir(config.module.parent)
    return started(config.model_copy(update={"module": Path(config.module.name)})), here, bare


def test_K03_a_module_in_the_current_folder_is_that_file_and_no_other(tmp_path: Path) -> None:
    told, here, bare = alone(_relative, make_token(tmp_path / "token"))
    assert told == "ok"
    assert bare.startswith(
        f"HSM_MODULE_MISSING: There is no PKCS#11 module to be had at {here}/libp11-kit.so.0 (No such"
    )
    assert "full path" in bare


def _same_list(config: HsmConfig) -> bool:
    library = pkcs11.lib(str(config.module))
    found = ctypes.c_void_p()
    assert ctypes.CDLL(str(config.module)).C_GetFunctionList(ctypes.byref(found)) == 0
    library.finalize()
    return list_of(library) == found.value


def test_K03_the_bindings_own_function_list_is_where_it_is_looked_for(tmp_path: Path) -> None:
    assert alone(_same_list, make_token(tmp_path / "token"))


# ---- K04: why it cannot be loaded ---------------------------------------------------------------------------------


def _needs_another(folder: Path) -> Path:
    gone = compiled(folder, "libgone", "int gone(void) { return 0; }")
    needs = compiled(folder, "needs", "int gone(void); int c(void) { return gone(); }", f"-L{folder}", "-l:libgone.so")
    gone.unlink()
    return needs


def _foreign_architecture(folder: Path) -> Path:
    """As of a processor that nobody has."""
    made = compiled(folder, "other", "int one;")
    content = bytearray(made.read_bytes())
    content[18:20] = b"\xff\x7f"  # e_machine
    made.write_bytes(content)
    return made


def _unresolved(folder: Path) -> Path:
    return compiled(folder, "unresolved", "extern int nowhere_to_be_found; int *c = &nowhere_to_be_found;")


def _folder(folder: Path) -> Path:
    (folder / "module.so").mkdir()
    return folder / "module.so"


def _written(content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "module.so").write_bytes(content)
        return folder / "module.so"

    return make


def _loose(folder: Path) -> Path:
    (folder / "real.so").write_bytes(b"")
    (folder / "real.so").chmod(0o666)
    return _link(folder, folder / "real.so")


@pytest.mark.parametrize(
    ("make", "reason", "said"),
    [
        (_needs_another, "HSM_MODULE_UNLOADABLE", "libgone.so: cannot open shared object file"),
        (_foreign_architecture, "HSM_MODULE_UNLOADABLE", "other.so: "),
        (_unresolved, "HSM_MODULE_UNLOADABLE", "undefined symbol: nowhere_to_be_found"),
        (_written(b"#!/bin/sh\n" * 100), "HSM_MODULE_INVALID", "invalid ELF header"),
        (_written(b""), "HSM_MODULE_INVALID", "file too short"),
        (_folder, "HSM_MODULE_MISSING", "is a folder"),
        (lambda folder: folder / "gone.so", "HSM_MODULE_MISSING", "No such file or directory"),
        (lambda folder: _link(folder, folder / "gone.so"), "HSM_MODULE_MISSING", "No such file or directory"),
        (_loose, "HSM_MODULE_UNSAFE", "real.so"),
        (lambda folder: compiled(folder, "none", "int one;"), "HSM_MODULE_INVALID", "has no C_GetFunctionList"),
        (
            lambda folder: compiled(folder, "newer", _FORWARDS % find_softhsm() + _INTERFACE),
            "HSM_MODULE_INVALID",
            "offers C_GetInterface and no C_GetFunctionList",
        ),
    ],
    ids=["needs", "machine", "symbol", "script", "empty", "folder", "gone", "link", "loose", "none", "newer"],
)
def test_K04_the_reason_is_the_loaders_own(
    tmp_path: Path, make: Callable[[Path], Path], reason: str, said: str
) -> None:
    told = started(config_for(make(tmp_path), tmp_path))
    assert told.startswith(f"{reason}: ")
    assert said in told
    assert ("is not a PKCS#11 module" in told or "so not a PKCS#11 module" in told) == (
        reason == "HSM_MODULE_INVALID" and "C_GetInterface" not in told
    )


def test_K04_what_it_needs_is_to_be_installed(tmp_path: Path) -> None:
    assert "it needs that library, so install it" in started(config_for(_needs_another(tmp_path), tmp_path))


def _as_another_user(config: HsmConfig) -> str:
    os.seteuid(65534)
    try:
        return started(config)
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_K04_a_module_that_its_user_may_not_read_is_said_to_be_that(tmp_path: Path) -> None:
    module = compiled(tmp_path, "closed", "int one;")
    module.chmod(0o600)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    told = alone(_as_another_user, config_for(module, tmp_path))
    assert told.startswith("HSM_MODULE_UNLOADABLE: ")
    assert "Permission denied" in told
    assert "the user 65534 that runs the broker may not read it (mode 0600)" in told


_NOEXEC = """
mount -t tmpfs -o noexec none "$1" && cp "$2" "$1/module.so" && chmod 755 "$1/module.so" || exit 77
exec "$3" -c 'import sys
from pathlib import Path
from tests.live.hsm.test_modules import config_for, started
print(started(config_for(Path(sys.argv[1]) / "module.so", Path(sys.argv[2]))))' "$1" "$4"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_K04_a_module_on_a_noexec_mount_is_said_to_be_that(tmp_path: Path) -> None:
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    arguments = (str(mounted), str(find_softhsm()), sys.executable, str(tmp_path))
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", _NOEXEC, "sh", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip(f"this machine does not let root mount: {done.stderr.strip()[-200:]}")
    assert done.stdout.startswith("HSM_MODULE_UNLOADABLE: "), done.stderr
    assert "its file system is mounted noexec" in done.stdout
