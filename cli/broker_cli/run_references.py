"""What a job asks for: names of variables and files, each with a reference or, in an env file, a plain value.

A reference is ``broker://PATH[@VERSION]#FIELD``. It says where a secret is and is none itself: safe to commit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from broker_cli import dotenv
from broker_cli.dotenv import NAME, SCHEME, Line
from broker_cli.refusal import Exit, Refusal

MAX_REFERENCES = 100
REFERENCE = re.compile(
    r"[a-z0-9-]+(?:/[a-z0-9-]+)*(?:@[1-9][0-9]{0,8})?(?:#[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})?", re.ASCII
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Names and the references (as the wire takes them, without scheme) that their values come from."""

    variables: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    plain: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def references(self) -> list[str]:
        """Each reference once, in the order of its first use."""
        return list(dict.fromkeys([*self.variables.values(), *self.files.values()]))


def wanted(env_files: Iterable[str], secrets: Iterable[str], as_files: Iterable[str]) -> Wanted:
    """Put together what was asked for; an option goes before a line of an env file."""
    lines: dict[str, Line] = {}
    for one in env_files:
        lines |= dotenv.read(Path(one))
    variables = {
        name: reference(line.value, f"{name} ({line.place})")
        for name, line in lines.items()
        if line.value.startswith(SCHEME)
    }
    plain = {name: line.value for name, line in lines.items() if name not in variables}
    options, files_ = _options(secrets, "--secret"), _options(as_files, "--file")
    if twice := options.keys() & files_.keys():
        raise Refusal("NAME_TWICE", f"{min(twice)} is given with --secret and with --file; choose one.", Exit.USAGE)
    given = options.keys() | files_.keys()
    found = Wanted(
        variables={name: text for name, text in variables.items() if name not in given} | options,
        files=files_,
        plain={name: text for name, text in plain.items() if name not in given},
    )
    check_count(found.references)
    return found


def check_count(references: list[str]) -> None:
    """Refuse nothing at all, and more than one call takes."""
    if not references:
        raise Refusal(
            "NOTHING_ASKED", "No secret is asked for: name one with --secret NAME=broker://path#field.", Exit.USAGE
        )
    if len(references) > MAX_REFERENCES:
        raise Refusal("REFERENCES_TOO_MANY", f"One call takes at most {MAX_REFERENCES} references.", Exit.USAGE)


def reference(text: str, name: str, *, whole: bool = False) -> str:
    """The reference that ``text`` is, without its scheme; with ``whole`` it may leave the field open.

    The refusal does not quote ``text``: somebody may have put the secret itself there (CL-01).
    """
    bare = text.removeprefix(SCHEME)
    if not text.startswith(SCHEME) or not REFERENCE.fullmatch(bare) or not (whole or "#" in bare):
        raise Refusal(
            "REFERENCE_INVALID",
            f"What is given for {name} is not a reference: write {SCHEME}path#field (or path@version#field). "
            "A secret itself does not belong on a command line or in an env file.",
            Exit.USAGE,
        )
    return bare


def _options(pairs: Iterable[str], option: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not NAME.fullmatch(name):
            raise Refusal("NAME_INVALID", f"Write {option} as NAME={SCHEME}path#field.", Exit.USAGE)
        if name in found:
            raise Refusal("NAME_TWICE", f"{name} is given twice with {option}.", Exit.USAGE)
        found[name] = reference(text, name)
    return found


def only_field(fields: Mapping[str, bytes], asked: str) -> bytes:
    """The value of the one field that ``asked`` names; an answer without it is refused."""
    name = asked.partition("#")[2]
    if set(fields) != {name}:
        raise Refusal("ANSWER_INVALID", f"The broker's answer for {asked} is not that one field; report this.")
    return fields[name]
