"""Finds the identity token that this job has from its CI, without being told which CI it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from broker_cli.ci import azure, bitbucket, buildkite, circleci, github, gitlab, kubernetes, tokenfile
from broker_cli.ci.token import checked, for_audience
from broker_cli.refusal import Exit, Refusal

VARIABLE = "BROKER_ID_TOKEN"


class Source(Protocol):
    """A CI: whether this is a job of it, and what token the job has."""

    ORIGIN: str

    def here(self, environ: Mapping[str, str], /) -> bool:
        """Whether this is a job of this CI."""

    def token(self, environ: Mapping[str, str], audience: str, /) -> str:
        """The job's identity token, a JWT."""


# Kubernetes is last: jobs of the others run in pods too.
SOURCES: tuple[Source, ...] = (github, gitlab, azure, circleci, buildkite, bitbucket, kubernetes)


def token(environ: Mapping[str, str], audience: str, file: str | None) -> str:
    """The identity token, fetched or read anew: a file that is named goes before everything that is found."""
    named = file or environ.get("BROKER_ID_TOKEN_FILE")
    if named:
        return tokenfile.token(Path(named), audience)
    for source in SOURCES:
        if source.here(environ) and not (source is kubernetes and environ.get(VARIABLE)):
            return source.token(environ, audience)
    if environ.get(VARIABLE):
        return for_audience(checked(environ[VARIABLE], f"the variable {VARIABLE}"), audience, "fetch one for that.")
    raise Refusal(
        "IDENTITY_MISSING",
        "No CI was recognised here, so there is no identity token to log in with: run this in a job of "
        f"{', '.join(source.ORIGIN for source in SOURCES)}, or name a token's file with --token-file.",
        Exit.NOT_LOGGED_IN,
    )
