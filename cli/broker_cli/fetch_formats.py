"""The forms in which ``broker fetch`` hands values over."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from broker_cli import files
from broker_cli.dotenv import quoted
from broker_cli.mask import SHORTEST, spoken
from broker_cli.refusal import Exit, Refusal
from broker_cli.screen import chat

Values = Mapping[str, bytes]

MAX_COMMANDS = 16 * 1024 * 1024
"""Bytes of a file of variables that are looked through before something is added."""

DOCKER_LINE = 64 * 1024
"""Bytes of a line that docker's scanner takes no more."""

CARRIES = {
    "env": "another name with NAME=, --format json or --format file",
    "dotenv": "--format env for a shell, --format docker for docker run, or --format json or file",
    "docker": "broker run with docker run --env NAME, or --format file and a mount",
    "azure": "broker run, or --format file",
}
"""What carries that which a format cannot."""

READ_DIFFERENTLY = (
    "not all readers of dotenv make the same of a carriage return, a backslash doubled or at the end, ${…}, broker:// "
    'at the beginning, or an apostrophe together with one of " \\ $ `'
)
"""Each of these, and not which one it is: what stands in a value is not told."""

OF_SHELLS = frozenset({
    "_", "UID", "EUID", "PPID", "GROUPS", "BASHPID", "BASHOPTS", "SHELLOPTS", "BASH_VERSINFO", "BASH_ARGC", "BASH_ARGV",
    "BASH_LINENO", "BASH_SOURCE", "BASH_COMMAND", "BASH_SUBSHELL", "BASH_ALIASES", "BASH_CMDS", "BASH_MONOSECONDS",
    "FUNCNAME", "DIRSTACK", "PIPESTATUS", "RANDOM", "SRANDOM", "SECONDS", "EPOCHSECONDS", "EPOCHREALTIME", "LINENO",
    "HISTCMD", "OPTIND", "COMP_WORDBREAKS",
})  # fmt: skip
"""Variables that bash or dash makes itself: setting them fails, or is forgotten."""

_HEREDOC = re.compile(rb"[^=<]*(?:<[^=<]+)*<<(.+)", re.DOTALL)


def env(values: Values) -> str:
    """Lines for a POSIX shell to evaluate."""
    texts = _texts(values, "env", _of_shells)
    return "".join(f"export {name}={shlex.quote(text)}\n" for name, text in texts.items())


def dotenv(values: Values) -> str:
    """A dotenv file that all its readers read the same (``broker_cli.dotenv``)."""
    texts = _texts(values, "dotenv", _of_dotenv)
    return "".join(f"{name}={quoted(text)}\n" for name, text in texts.items())


def docker(values: Values) -> str:
    """A file for ``docker run --env-file``, which takes a line as it is: no quotes, and nothing to escape with."""
    texts = _texts(values, "docker", _of_docker)
    return "".join(f"{name}={text}\n" for name, text in texts.items())


def as_json(values: Values) -> str:
    """One JSON object."""
    return json.dumps(_texts(values, "json"), indent=2) + "\n"


def azure(values: Values) -> str:
    """Commands for the agent of Azure Pipelines: masks first, then a secret variable each for the steps that follow."""
    texts = _texts(values, "azure", _of_azure)
    _tell_of_short(values)
    # What the agent is given to decode is masked too: it shows commands in a log for diagnosis.
    masks = sorted({form for line in spoken(values.values()) for form in (line, _vso(line)) if form})
    return "".join(
        [f"##vso[task.setsecret]{_vso(line)}\n" for line in masks]
        + [f"##vso[task.setvariable variable={name};issecret=true]{_vso(text)}\n" for name, text in texts.items()]
    )


TEXTS: dict[str, Callable[[Values], str]] = {
    "env": env, "dotenv": dotenv, "docker": docker, "json": as_json, "azure": azure,
}  # fmt: skip


def check_place(format_: str, environ: Mapping[str, str]) -> None:
    """Refuse a CI's own format where that CI is not there to hide the values, or has no way to."""
    if format_ == "gitlab":
        raise Refusal(
            "FORMAT_UNSAFE",
            "GitLab hides nothing that a job learns while it runs, and keeps dotenv reports on its server for all who "
            "can see the job: use broker run, or --format env within the script that needs the values.",
            Exit.USAGE,
        )
    if format_ == "azure" and environ.get("TF_BUILD", "").lower() != "true":
        raise Refusal(
            "NOT_AZURE",
            "--format azure is for steps of Azure Pipelines alone (TF_BUILD is True there): elsewhere nobody would "
            "hide the values.",
            Exit.USAGE,
        )


def write_folder(folder: Path, values: Values) -> None:
    """A file a value in a new private folder; all of them or none."""
    from broker_cli.key_pairs import folder_in_the_making  # noqa: PLC0415  slow to load

    with folder_in_the_making(folder) as making:
        for name, value in values.items():
            files.create(making / name, value)
    chat(f"broker: {len(values)} files written to {folder}.")


def github_file(environ: Mapping[str, str]) -> Path:
    """The file of variables that GitHub Actions gave this step."""
    named = environ.get("GITHUB_ENV", "")
    if environ.get("GITHUB_ACTIONS") != "true" or not named:
        raise Refusal(
            "NOT_GITHUB",
            "--format github is for steps of GitHub Actions alone (GITHUB_ACTIONS and GITHUB_ENV are set there): "
            "elsewhere nobody would hide the values.",
            Exit.USAGE,
        )
    return Path(named)


def write_github(values: Values, place: Path) -> None:
    """Have the runner told what hides every value, and only then set the variables for the steps that follow."""
    texts = _texts(values, "github")
    for name in texts:
        if name.upper() == "NODE_OPTIONS" or name.upper().startswith(("GITHUB_", "RUNNER_")):
            raise Refusal(
                "NAME_RESERVED", f"GitHub Actions does not let a step set {name}; choose another.", Exit.USAGE
            )
    _tell_of_short(values)
    sys.stdout.write("".join(f"::add-mask::{_command(line)}\n" for line in spoken(values.values())))
    sys.stdout.flush()
    _append(place, "".join(_heredoc(name, text) for name, text in texts.items()).encode())


def _command(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _heredoc(name: str, text: str) -> str:
    delimiter = f"broker_{secrets.token_hex(16)}"
    if delimiter in text:  # it would have been guessed
        raise Refusal("VALUE_INVALID", f"The value for {name} holds the delimiter; try again.")
    return f"{name}<<{delimiter}\n{text}\n{delimiter}\n"


def _append(place: Path, content: bytes) -> None:
    """Add whole lines to what earlier commands of the step have left in the file."""
    try:
        descriptor = os.open(place, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "r+b") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Refusal("FILE_NOT_REGULAR", "GITHUB_ENV does not name a regular file.")
            file.write(_separator(file.read(MAX_COMMANDS + 1)) + content)
    except OSError as fault:
        raise Refusal("FILE_NOT_WRITTEN", f"The file in GITHUB_ENV cannot be written: {fault.strerror}.") from None


def _separator(there: bytes) -> bytes:
    """What goes between the file as it is and new lines; refused where the runner would take those for a value."""
    if len(there) > MAX_COMMANDS:
        raise Refusal("INPUT_TOO_LONG", f"The file in GITHUB_ENV is longer than {MAX_COMMANDS} bytes already.")
    if there.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Refusal(
            "FILE_NOT_UTF8",
            "The file in GITHUB_ENV is in UTF-16, as Windows PowerShell writes: write to it with -Encoding utf8.",
        )
    delimiter = b""
    for line in there.split(b"\n"):
        if delimiter:
            delimiter = b"" if line == delimiter else delimiter
        elif found := _HEREDOC.fullmatch(line):
            delimiter = found[1]
    if delimiter:
        raise Refusal(
            "FILE_UNFINISHED",
            "The file in GITHUB_ENV ends within a value (NAME<<DELIMITER) that an earlier command began: "
            "end it with its delimiter on a line of its own.",
        )
    return b"\n" if there and not there.endswith(b"\n") else b""


def _tell_of_short(values: Values) -> None:
    short = sorted(name for name, value in values.items() if len(value.strip()) < SHORTEST)
    if short:
        chat(f"broker: {', '.join(short)}: shorter than {SHORTEST} bytes, so not masked in the log.")


def _vso(text: str) -> str:
    """As the agent decodes it: only these, and the percent sign so that it cannot begin one of them."""
    return text.replace("%", "%AZP25").replace("\r", "%0D").replace("\n", "%0A")


def _of_shells(name: str, _: str) -> str:
    """Why it cannot be given to a shell; "" when it can."""
    return "shells keep this name for themselves" if name in OF_SHELLS else ""


def _of_dotenv(name: str, text: str) -> str:
    """Why it cannot be a line of dotenv."""
    if why := _of_shells(name, text):
        return why
    return "" if quoted(text) is not None else READ_DIFFERENTLY


def _of_docker(name: str, text: str) -> str:
    if "\n" in text or "\r" in text:
        return "a line break ends the variable"
    return "" if len(f"{name}={text}".encode()) < DOCKER_LINE else "docker takes no line that long"


def _of_azure(_: str, text: str) -> str:
    if "\n" in text or "\r" in text:
        return "a secret variable has one line there"
    return "the agent would expand $(…)" if "$(" in text else ""


def _texts(values: Values, format_: str, why: Callable[[str, str], str] = lambda *_: "") -> dict[str, str]:
    """The values as text; refused, naming every one, where the format cannot carry them."""
    texts = {name: _text(value) for name, value in values.items()}
    if binary := [name for name, text in texts.items() if text is None]:
        raise Refusal(
            "VALUE_NOT_TEXT", f"What {' and '.join(binary)} would hold is not text: use --format file.", Exit.USAGE
        )
    found = {name: text for name, text in texts.items() if text is not None}
    faults = {name: fault for name, text in found.items() if (fault := why(name, text))}
    if faults:
        told = "; ".join(f"{name} ({fault})" for name, fault in faults.items())
        raise Refusal(
            "VALUE_UNREPRESENTABLE",
            f"--format {format_} cannot carry {told}: use {CARRIES[format_]}.",
            Exit.USAGE,
        )
    return found


def _text(value: bytes) -> str | None:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text
