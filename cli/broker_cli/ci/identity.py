"""Finds the identity token that this job has from its CI, without being told which CI it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from broker_cli.budget import Budget
from broker_cli.ci import azure, bitbucket, buildkite, circleci, github, gitlab, kubernetes, tokenfile
from broker_cli.ci.token import checked, for_audience
from broker_cli.refusal import Exit, Refusal

VARIABLE, FILE = "BROKER_ID_TOKEN", "BROKER_ID_TOKEN_FILE"
USUAL_SECONDS = 30.0
WITHHELD = "BROKER_IDENTITY_WITHHELD"
"""Says to a command of `broker run`, and to a `broker run` within it, where the variables have gone."""


class Source(Protocol):
    """A CI: whether this is a job of it, and what token the job has."""

    ORIGIN: str
    CREDENTIALS: tuple[str, ...]
    """The variables that are an identity token, or with which one can be had."""

    def here(self, environ: Mapping[str, str], /) -> bool:
        """Whether this is a job of this CI."""

    def token(self, environ: Mapping[str, str], audience: str, within: Budget, /) -> str:
        """The job's identity token, a JWT; what has to be asked for is asked for again ``within`` that time."""


# Kubernetes is last: jobs of the others run in pods too.
SOURCES: tuple[Source, ...] = (github, gitlab, azure, circleci, buildkite, bitbucket, kubernetes)


def token(environ: Mapping[str, str], audience: str, file: str | None, within: Budget | None = None) -> str:
    """The identity token, fetched or read anew: a file that is named goes before everything that is found."""
    within = within or Budget(USUAL_SECONDS)
    named = file or environ.get(FILE)
    if named:
        return tokenfile.token(Path(named), audience)
    for source in SOURCES:
        if source.here(environ) and not (source is kubernetes and environ.get(VARIABLE)):
            if source.CREDENTIALS and environ.get(WITHHELD) and not any(map(environ.get, withheld(audience))):
                raise _withheld()
            return source.token(environ, audience, within)
    if environ.get(VARIABLE):
        return for_audience(checked(environ[VARIABLE], f"the variable {VARIABLE}"), audience, "fetch one for that.")
    if environ.get(WITHHELD):
        raise _withheld()
    raise Refusal(
        "IDENTITY_MISSING",
        "No CI was recognised here, so there is no identity token to log in with: run this in a job of "
        f"{', '.join(source.ORIGIN for source in SOURCES)}, or name a token's file with --token-file.",
        Exit.NOT_LOGGED_IN,
    )


def at_hand(environ: Mapping[str, str], file: str | None) -> bool:
    """Whether the token is a file's, which the writer of the file may have renewed since it was read."""
    here = next((source for source in SOURCES if source.here(environ)), None)
    return bool(file or environ.get(FILE)) or (here is kubernetes and not environ.get(VARIABLE))


def withheld(audience: str) -> frozenset[str]:
    """The variables with which a job could log in once more, whatever CI it is of."""
    everywhere = {name for source in SOURCES for name in source.CREDENTIALS}
    return frozenset({*everywhere, *gitlab.names(audience), VARIABLE, FILE})


def without(environ: Mapping[str, str], audience: str) -> dict[str, str]:
    """The environment without what the job's identity can be had with, and with a word of it if there was any."""
    taken = withheld(audience)
    kept = {name: value for name, value in environ.items() if name not in taken}
    return kept if len(kept) == len(environ) else {**kept, WITHHELD: "1"}


def _withheld() -> Refusal:
    return Refusal(
        "IDENTITY_WITHHELD",
        "A `broker run` around this command keeps the CI's identity from it: fetch there what is needed here, or give "
        "that one --keep-identity.",
        Exit.NOT_LOGGED_IN,
    )
