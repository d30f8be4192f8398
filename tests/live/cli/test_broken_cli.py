"""The command line with its streams closed or full, with files that hold nothing, with words that are no text."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live.cli.test_standin import StandIn, running, stand_in
from tests.live.cli.test_terminal import environment, profile
from tests.servers.warm import as_text, run_command_line

__all__ = ["profile", "running", "stand_in"]  # fixtures


def shell(line: str, profile: Path, *words: str | bytes) -> tuple[int, str]:
    """A line of sh in which ``b`` is the command; its exit code and what it said on stderr."""
    line = line.replace("b ", f"{sys.executable} -m broker_cli ", 1)
    done = subprocess.run(
        ["sh", "-c", line, "sh", *words], capture_output=True, env=environment(profile), timeout=200, check=False
    )
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize(("line", "code", "said"), [
    ("b key list >&-", 1, "Standard output is closed, and the result was to go there. [OUTPUT_CLOSED]"),
    ("b key list >/dev/full", 1, "The result cannot be written: No space left on device. [OUTPUT_FAILED]"),
    ("b --help >/dev/full", 1, "The result cannot be written: No space left on device. [OUTPUT_FAILED]"),
    ("b key sign pay <&-", 2, "Standard input is closed, and the message was to come from it. [INPUT_CLOSED]"),
    ("b secret put a <&-", 2, "Standard input is closed, and the value was to come from it. [INPUT_CLOSED]"),
    ("b secret patch a --field b <&-", 2,
     "There is nobody to ask for a value here: write --field NAME=@FILE or NAME=@-. [VALUE_NEEDED]"),
    ("b key destroy pay <&-", 2, "This needs a yes, and there is nobody to ask here: add --yes. [CONFIRMATION_NEEDED]"),
])  # fmt: skip
def test_CL_a_stream_that_is_closed_or_full_is_told_in_one_sentence(
    profile: Path, stand_in: StandIn, line: str, code: int, said: str
) -> None:
    assert shell(line, profile) == (code, f"broker: {said}\n")
    assert "Sign" not in {method for method, *_ in stand_in.seen}


def test_CL_nobody_to_tell_it_to_is_no_fault(profile: Path) -> None:
    assert shell("b key list 2>&- >/dev/null", profile) == (0, "")


@pytest.mark.parametrize("line", [
    'b key show "$1"',
    'b key create a --type ec-p256 --usage sign --label "n=$1"',
])  # fmt: skip
def test_CL_a_word_that_the_wire_cannot_carry_is_wrong_usage(profile: Path, line: str) -> None:
    said = "broker: An argument is not UTF-8 text, or a number is far too large. [ARGUMENT_UNSENDABLE]\n"
    assert shell(line, profile, os.fsencode("a") + b"\xff") == (2, said)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"-----BEGIN NOTHING-----\n"])
@pytest.mark.parametrize(("name", "reason"), [
    ("ca.pem", "CA_INVALID"), ("cert.pem", "CERTIFICATE_INVALID"), ("key.pem", "KEY_INVALID"),
])  # fmt: skip
def test_CL_a_profile_file_that_holds_no_pem_is_named(profile: Path, name: str, reason: str, content: bytes) -> None:
    [file] = profile.glob(name)
    file.write_bytes(content)
    done = as_text(run_command_line(("operator", "whoami"), environment=environment(profile)))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.endswith(f"[{reason}]\n")
