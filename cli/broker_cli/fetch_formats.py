"""The forms in which ``broker fetch`` hands values over."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from broker_cli import files
from broker_cli.mask import SHORTEST, spoken
from broker_cli.refusal import Exit, Refusal
from broker_cli.screen import chat

Values = Mapping[str, bytes]


def env(values: Values) -> str:
    """Lines for a POSIX shell to evaluate."""
    return "".join(f"export {name}={shlex.quote(_text(name, value))}\n" for name, value in values.items())


def dotenv(values: Values) -> str:
    """A dotenv file: in single quotes, where nothing has a meaning; in double ones only what cannot stand in those."""
    return "".join(f"{name}={_dot_quoted(_text(name, value))}\n" for name, value in values.items())


def as_json(values: Values) -> str:
    """One JSON object."""
    return json.dumps({name: _text(name, value) for name, value in values.items()}, indent=2) + "\n"


TEXTS: dict[str, Callable[[Values], str]] = {"env": env, "dotenv": dotenv, "json": as_json}


def write_folder(folder: Path, values: Values) -> None:
    """A file a value in a new private folder; all of them or none."""
    from broker_cli.papers import folder_in_the_making  # noqa: PLC0415  slow to load

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
    texts = {name: _text(name, value) for name, value in values.items()}
    for name in texts:
        if name.upper() == "NODE_OPTIONS" or name.upper().startswith(("GITHUB_", "RUNNER_")):
            raise Refusal(
                "NAME_RESERVED", f"GitHub Actions does not let a step set {name}; choose another.", Exit.USAGE
            )
    short = sorted(name for name, value in values.items() if len(value.strip()) < SHORTEST)
    if short:
        chat(f"broker: {', '.join(short)}: shorter than {SHORTEST} bytes, so not masked in the log.")
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
    try:
        descriptor = os.open(place, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "ab") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Refusal("FILE_NOT_REGULAR", "GITHUB_ENV does not name a regular file.")
            file.write(content)
    except OSError as fault:
        raise Refusal("FILE_NOT_WRITTEN", f"The file in GITHUB_ENV cannot be written: {fault.strerror}.") from None


def _dot_quoted(text: str) -> str:
    if "'" not in text and "\n" not in text and "\r" not in text:
        return f"'{text}'"
    for one, escaped in (("\\", "\\\\"), ('"', '\\"'), ("$", "\\$"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(one, escaped)
    return f'"{text}"'


def _text(name: str, value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise Refusal("VALUE_NOT_TEXT", f"The value for {name} is not text: use --format file.", Exit.USAGE)
    return text
