"""Bitbucket Pipelines: a step with ``oidc: true`` has its token as a variable."""

from __future__ import annotations

from collections.abc import Mapping

from broker_cli.budget import Budget
from broker_cli.ci.token import checked, for_audience
from broker_cli.refusal import Exit, Refusal

ORIGIN = "Bitbucket Pipelines"
VARIABLE = "BITBUCKET_STEP_OIDC_TOKEN"
CREDENTIALS: tuple[str, ...] = (VARIABLE,)
_CURE = "write the token's audience in the broker's trust rule and here, or set the step's `oidc: audiences`."


def here(environ: Mapping[str, str]) -> bool:
    """Whether this is a step of Bitbucket Pipelines."""
    return bool(environ.get("BITBUCKET_BUILD_NUMBER") or environ.get(VARIABLE))


def token(environ: Mapping[str, str], audience: str, within: Budget) -> str:
    """The step's token."""
    del within
    if not environ.get(VARIABLE):
        raise Refusal(
            "PERMISSION_MISSING",
            "The step lacks `oidc: true`, so Bitbucket gives it no identity token: add that to the step.",
            Exit.NOT_LOGGED_IN,
        )
    return for_audience(checked(environ[VARIABLE], f"the variable {VARIABLE}"), audience, _CURE)
