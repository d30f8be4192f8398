"""PKCS#11 modules made for a test: SoftHSM with one function in front of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

from broker.hsm.tokens import find_softhsm

_BEFORE = """
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
struct attribute { unsigned long type; void *value; unsigned long length; };
static void *functions[80];
%s
unsigned long C_GetFunctionList(void **list) {
  unsigned long (*get)(void **), code;
  void **real;
  *(void **)&get = dlsym(dlopen("%s", RTLD_NOW | RTLD_LOCAL), "C_GetFunctionList");
  code = get((void **)&real);
  memcpy(functions, real, 69 * sizeof(void *));
  *(void **)&real_one = real[%d];
  functions[%d] = (void *)instead;
  *list = functions;
  return code;
}
"""


def compiled(folder: Path, name: str, source: str, *options: str) -> Path:
    """A library of this C source."""
    (folder / f"{name}.c").write_text(source)
    made = folder / f"{name}.so"
    command = ["gcc", "-shared", "-fPIC", "-o", str(made), str(folder / f"{name}.c"), *options, "-ldl"]
    subprocess.run(command, check=True, timeout=200)
    made.chmod(0o755)
    return made


def softhsm_but(folder: Path, place: int, instead: str) -> Path:
    """SoftHSM with the function at this place of the list (the version is 0) replaced.

    ``instead``: C source of ``instead``, and of ``real_one``, a pointer to SoftHSM's own.
    """
    return compiled(folder, f"instead-{place}", _BEFORE % (instead, find_softhsm(), place, place))
