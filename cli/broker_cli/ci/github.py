"""GitHub Actions: the runner names an endpoint and a credential for it, if the job may have identity tokens."""

from __future__ import annotations

from collections.abc import Mapping

from broker_cli.budget import Budget
from broker_cli.ci.token import checked, needed
from broker_cli.refusal import Exit, Refusal

ORIGIN = "GitHub Actions"
CREDENTIALS: tuple[str, ...] = ("ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN")


def here(environ: Mapping[str, str]) -> bool:
    """Whether this is a job of GitHub Actions."""
    return environ.get("GITHUB_ACTIONS") == "true" or any(environ.get(name) for name in CREDENTIALS)


def token(environ: Mapping[str, str], audience: str, within: Budget) -> str:
    """A fresh token for ``audience``."""
    url, bearer = (environ.get(name, "") for name in CREDENTIALS)
    if not url and not bearer:
        raise Refusal(
            "PERMISSION_MISSING",
            "The job lacks `permissions: id-token: write`, so GitHub Actions gives it no identity token: "
            "add that to the job. A called workflow needs it from its caller too; pull requests of forks never get it.",
            Exit.NOT_LOGGED_IN,
        )
    if not url or not bearer:
        absent = CREDENTIALS[1] if url else CREDENTIALS[0]
        raise Refusal(
            "IDENTITY_UNAVAILABLE",
            f"{absent} is not set although its sibling is: pass both on, as GitHub Actions set them.",
            Exit.NOT_LOGGED_IN,
        )
    from broker_cli.ci import web  # noqa: PLC0415  only here is HTTP spoken, and it is slow to load

    answer = web.ask(web.with_query(url, audience=needed(audience, ORIGIN)), bearer, ORIGIN, within)
    return checked(str(answer.get("value", "")), ORIGIN)
