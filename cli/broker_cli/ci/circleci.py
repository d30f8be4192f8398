"""CircleCI: a token for the organisation comes as a variable; one for another audience from CircleCI's program."""

from __future__ import annotations

import json
from collections.abc import Mapping

from broker_cli.budget import Budget
from broker_cli.ci import program
from broker_cli.ci.token import audiences, checked

ORIGIN = "CircleCI"
VARIABLE = "CIRCLE_OIDC_TOKEN_V2"
CREDENTIALS: tuple[str, ...] = ("CIRCLE_OIDC_TOKEN", VARIABLE)


def here(environ: Mapping[str, str]) -> bool:
    """Whether this is a job of CircleCI."""
    return environ.get("CIRCLECI") == "true"


def token(environ: Mapping[str, str], audience: str, within: Budget) -> str:
    """The job's own token if it is for ``audience`` (or none is named), otherwise a fresh one."""
    if environ.get(VARIABLE):
        found = checked(environ[VARIABLE], f"the variable {VARIABLE}")
        if audiences(found) == [audience] or not audience:
            return found
    claims = ["--claims", json.dumps({"aud": audience})] if audience else []
    return checked(program.ask(["circleci", "run", "oidc", "get", *claims], ORIGIN, within), ORIGIN)
