"""GitLab CI: the job declares ``id_tokens``; each comes as a variable."""

from __future__ import annotations

import re
from collections.abc import Mapping

from broker_cli.budget import Budget
from broker_cli.ci.token import checked, for_audience
from broker_cli.refusal import Exit, Refusal

ORIGIN = "GitLab CI"
USUAL = "BROKER_ID_TOKEN"
CREDENTIALS: tuple[str, ...] = ("CI_JOB_JWT", "CI_JOB_JWT_V1", "CI_JOB_JWT_V2")  # of older servers, for everybody
_CURE = "write that audience at `id_tokens:` in the job."


def here(environ: Mapping[str, str]) -> bool:
    """Whether this is a job of GitLab CI."""
    return environ.get("GITLAB_CI") == "true"


def names(audience: str) -> list[str]:
    """The variables that are looked at: our usual one, and the one named for the audience."""
    return [USUAL, *([re.sub("[^A-Z0-9]", "_", audience.upper()) + "_ID_TOKEN"] if audience else [])]


def token(environ: Mapping[str, str], audience: str, within: Budget) -> str:
    """The token that the job declared for us."""
    del within
    for name in names(audience):
        if environ.get(name):
            return for_audience(checked(environ[name], f"the variable {name}"), audience, _CURE)
    raise Refusal(
        "PERMISSION_MISSING",
        "The job declares no identity token: add "
        f"`id_tokens: {{ {USUAL}: {{ aud: {audience or 'AUDIENCE'} }} }}` to it.",
        Exit.NOT_LOGGED_IN,
    )
