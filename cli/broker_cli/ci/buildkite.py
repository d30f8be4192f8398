"""Buildkite: the agent asks for the token. Its issuer is everybody's, so the ids that cannot change are asked for."""

from __future__ import annotations

from collections.abc import Mapping

from broker_cli.budget import Budget
from broker_cli.ci import program
from broker_cli.ci.token import checked, needed

ORIGIN = "Buildkite"
CREDENTIALS: tuple[str, ...] = ("BUILDKITE_AGENT_ACCESS_TOKEN", "BUILDKITE_AGENT_TOKEN")


def here(environ: Mapping[str, str]) -> bool:
    """Whether this is a job of Buildkite."""
    return environ.get("BUILDKITE") == "true"


def token(environ: Mapping[str, str], audience: str, within: Budget) -> str:
    """A fresh token for ``audience``."""
    del environ
    claims = ["--claim", "organization_id", "--claim", "pipeline_id"]
    asked = ["--audience", needed(audience, ORIGIN), "--lifetime", "300", *claims]
    return checked(program.ask(["buildkite-agent", "oidc", "request-token", *asked], ORIGIN, within), ORIGIN)
