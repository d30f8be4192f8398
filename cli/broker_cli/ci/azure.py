"""Azure Pipelines: the job's access token, where it was mapped, buys an identity token.

Its audience is fixed by Azure (``api://AzureADTokenExchange``), so ``audience`` is not asked for.
"""

from __future__ import annotations

from collections.abc import Mapping

from broker_cli.budget import Budget
from broker_cli.ci.token import checked
from broker_cli.refusal import Exit, Refusal

ORIGIN = "Azure Pipelines"
CREDENTIALS: tuple[str, ...] = ("SYSTEM_ACCESSTOKEN", "SYSTEM_OIDCREQUESTURI")


def here(environ: Mapping[str, str]) -> bool:
    """Whether this is a job of Azure Pipelines."""
    return environ.get("TF_BUILD", "").lower() == "true"


def token(environ: Mapping[str, str], audience: str, within: Budget) -> str:
    """A fresh token of the pipeline."""
    del audience
    url, bearer = environ.get("SYSTEM_OIDCREQUESTURI"), environ.get("SYSTEM_ACCESSTOKEN")
    if not bearer:
        raise Refusal(
            "PERMISSION_MISSING",
            "SYSTEM_ACCESSTOKEN is not mapped into this step, so Azure Pipelines gives it no identity token: "
            "add `env: { SYSTEM_ACCESSTOKEN: $(System.AccessToken) }` to the step.",
            Exit.NOT_LOGGED_IN,
        )
    if not url:
        raise Refusal(
            "IDENTITY_UNAVAILABLE",
            "SYSTEM_OIDCREQUESTURI is not set: this agent or server is too old for identity tokens.",
            Exit.NOT_LOGGED_IN,
        )
    from broker_cli.ci import web  # noqa: PLC0415  only here is HTTP spoken, and it is slow to load

    answer = web.ask(web.with_query(url, **{"api-version": "7.1"}), bearer, ORIGIN, within, post=True)
    return checked(str(answer.get("oidcToken", "")), ORIGIN)
