"""Makes docs/errors.md from the reasons and their meanings; with ``--check`` tells whether it is fresh."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from broker.core.errors import Outcome
from broker.core.meanings import Meaning, meanings
from broker.core.reasons import Says

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
INTRODUCTION = """\
# Refusals

Made by `make errors` from `broker/core/meanings.py`.

A refusal is a gRPC status with one sentence for people and one `google.rpc.ErrorInfo` (domain `broker`) for programs:
its *reason*, which stays the same across releases, and the variable parts as metadata, `call_id` among them, under
which the audit has the call. Programs go by the reason, never by the sentence. The sentence always says what is wrong;
the last column tells what every sentence with this reason says besides. What starts the broker (`broker init`, `check`,
`serve`) refuses with the same reasons.

Refusals of the command line itself, before it calls, are its own and not listed here.
"""
WHEN = {
    Outcome.INVALID_ARGUMENT: "The request can never work as it stands.",
    Outcome.UNAUTHENTICATED: "Who is calling could not be established.",
    Outcome.PERMISSION_DENIED: "The caller is known and may not do this.",
    Outcome.NOT_FOUND: "There is no such thing.",
    Outcome.ALREADY_EXISTS: "The name, or the request id, is taken.",
    Outcome.FAILED_PRECONDITION: "The request is right, and the moment or the state of things is not.",
    Outcome.RESOURCE_EXHAUSTED: "A limit or a quota is reached.",
    Outcome.UNAVAILABLE: "Something that the broker needs is away; the same call may work later.",
    Outcome.UNIMPLEMENTED: "There is no such method.",
    Outcome.CANCELLED: "The caller went away before anything was done.",
    Outcome.DEADLINE_EXCEEDED: "The request did not arrive in time.",
    Outcome.ABORTED: "In the audit only: something was begun and taken back.",
    Outcome.INTERNAL: "The broker failed. That is a bug.",
}


def page() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *(line for group in groupby(meanings(), by_outcome) for line in section(*group))])


def by_outcome(one: Meaning) -> Outcome:
    return one.outcome


def section(outcome: Outcome, found: Iterator[Meaning]) -> Iterator[str]:
    yield from (
        f"## {outcome.name}",
        "",
        WHEN[outcome],
        "",
        "| reason | when | the sentence says besides |",
        "|---|---|---|",
    )
    for one in found:
        besides = "" if one.says is Says.NONE else one.says.value
        yield f"| `{one.reason}` | {one.text} | {besides} |"
    yield ""


def main() -> None:
    if "--check" not in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        sys.exit("docs/errors.md differs from the reasons of the broker: run 'make errors' and commit the result.")


if __name__ == "__main__":
    main()
