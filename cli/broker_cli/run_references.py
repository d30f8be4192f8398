"""What a job asks for: names of variables and files, each with a reference or, in an env file, a plain value.

A reference is ``broker://PATH[@VERSION]#FIELD``. It says where a secret is and is none itself: safe to commit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from broker_cli import dotenv
from broker_cli.dotenv import NAME, SCHEME, Line
from broker_cli.refusal import Exit, Refusal

T = TypeVar("T")

MAX_REFERENCES = 100
MAX_SEGMENTS = 8
SEGMENT = re.compile(r"[a-z0-9](?:[._-]?[a-z0-9]){0,62}", re.ASCII)
VERSION = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
FIELD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", re.ASCII)
_ALMOST = re.compile(r"\s*broker:/", re.IGNORECASE)
"""What begins so was meant for a reference: the command would get it as it stands instead."""
_SHOWN = re.compile(r"[A-Za-z0-9._-]{1,63}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Names and the references (as the wire takes them, without scheme) that their values come from."""

    variables: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    plain: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def references(self) -> list[str]:
        """Each reference once, in the order of its first use."""
        return list(self.asked)

    @property
    def asked(self) -> dict[str, list[str]]:
        """The references in order, each with the names that its value is wanted under."""
        found: dict[str, list[str]] = {}
        for name, text in [*self.variables.items(), *self.files.items()]:
            found.setdefault(text, []).append(name)
        return found


def wanted(env_files: Iterable[str], secrets: Iterable[str], as_files: Iterable[str]) -> Wanted:
    """Put together what was asked for; an option goes before a line of an env file."""
    lines: dict[str, Line] = {}
    for one in env_files:
        lines |= dotenv.read(Path(one))
    meant = {name: line for name, line in lines.items() if _ALMOST.match(line.value)}
    plain = {name: line.value for name, line in lines.items() if name not in meant}
    pairs, file_pairs = _options(secrets, "--secret"), _options(as_files, "--file")
    texts = all_of(
        [
            *(partial(reference, line.value, f"{name} ({line.place})") for name, line in meant.items()),
            *(partial(reference, text, name) for name, text in [*pairs.items(), *file_pairs.items()]),
        ]
    )
    variables = dict(zip(meant, texts, strict=False))
    options = dict(zip(pairs, texts[len(meant) :], strict=False))
    files_ = dict(zip(file_pairs, texts[len(meant) + len(pairs) :], strict=True))
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

    What has no scheme is not quoted: somebody may have put the secret itself there (CL-01).
    """
    if not text.startswith(SCHEME):
        raise _invalid(
            f"What is given for {name} is not a reference: write {SCHEME}path#field (or path@version#field). "
            "A secret itself does not belong on a command line or in an env file."
        )
    bare = text.removeprefix(SCHEME)
    if fault := _fault(bare, whole=whole):
        raise _invalid(f"The reference for {name} is not valid: {fault}.")
    return bare


def _fault(bare: str, *, whole: bool) -> str:
    """What of a reference does not follow the grammar, and the grammar; "" when all of it does."""
    path, mark, field_ = bare.partition("#")
    path, at, version = path.partition("@")
    segments = path.split("/")
    if len(segments) > MAX_SEGMENTS:
        return f"its path has {len(segments)} segments, and a secret's name at most {MAX_SEGMENTS}"
    for place, one in enumerate(segments, 1):
        if not SEGMENT.fullmatch(one):
            shown = f' ("{one}")' if _SHOWN.fullmatch(one) else ""
            return (
                f"segment {place} of its path{shown} is not 1 to 63 lower-case letters and digits, with single "
                "hyphens, underscores and dots between them"
            )
    if at and not VERSION.fullmatch(version):
        return "behind @ stands the number of a version, 1 or more"
    if mark and not FIELD.fullmatch(field_):
        return (
            "behind # stands the name of one field: 1 to 64 letters, digits, underscores, hyphens and dots, "
            "a letter, digit or underscore first"
        )
    return "" if mark or whole else f"it names no field: write {SCHEME}{path}#field"


def _invalid(sentence: str) -> Refusal:
    return Refusal("REFERENCE_INVALID", sentence, Exit.USAGE)


def all_of(reads: Iterable[Callable[[], T]]) -> list[T]:
    """What each gives; what they refuse is refused as one, with a line each."""
    found: list[T] = []
    refusals: list[Refusal] = []
    for read in reads:
        try:
            found.append(read())
        except Refusal as refused:
            refusals.append(refused)
    if len(refusals) > 1:
        whole = Refusal(refusals[0].reason, f"{len(refusals)} references cannot be used.", refusals[0].code)
        whole.lines = tuple(one.format_message() for one in refusals)
        raise whole
    if refusals:
        raise refusals[0]
    return found


@contextmanager
def named(asked: Mapping[str, Iterable[str]]) -> Iterator[None]:
    """Name the references that a refusal of the broker is about: ``asked`` has them in order, each with its names."""
    try:
        yield
    except Refusal as refused:
        references = list(asked)
        told = [(_what(references[one.place], asked), one) for one in refused.items if one.place < len(references)]
        if not told:  # it is about none of them, or from a broker that does not say
            raise
        if len(references) == 1:
            [(what, item)] = told
            raise Refusal(refused.reason, f"{what}: {item.message}", refused.code, refused.call_id) from None
        many = "reference is" if len(told) == 1 else "references are"
        sentence = f"{len(told)} of {len(references)} {many} refused, so nothing was fetched."
        whole = Refusal(refused.reason, sentence, refused.code, refused.call_id)
        whole.lines = tuple(f"{what}: {item.message} [{item.reason}]" for what, item in told)
        raise whole from None


def _what(text: str, asked: Mapping[str, Iterable[str]]) -> str:
    names = ", ".join(name for name in asked[text] if name)
    return f"{names} ({SCHEME}{text})" if names else f"{SCHEME}{text}"


def _options(pairs: Iterable[str], option: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not NAME.fullmatch(name):
            raise Refusal("NAME_INVALID", f"Write {option} as NAME={SCHEME}path#field.", Exit.USAGE)
        if name in found:
            raise Refusal("NAME_TWICE", f"{name} is given twice with {option}.", Exit.USAGE)
        found[name] = text
    return found


def only_field(fields: Mapping[str, bytes], asked: str) -> bytes:
    """The value of the one field that ``asked`` names; an answer without it is refused."""
    name = asked.partition("#")[2]
    if set(fields) != {name}:
        raise Refusal("ANSWER_INVALID", f"The broker's answer for {asked} is not that one field; report this.")
    return fields[name]
