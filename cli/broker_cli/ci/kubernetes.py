"""Kubernetes: the kubelet keeps a projected token fresh in a file.

The account's usual token is for the API server and is never sent anywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from broker_cli.budget import Budget
from broker_cli.ci import tokenfile
from broker_cli.refusal import Exit, Refusal

ORIGIN = "Kubernetes"
CREDENTIALS: tuple[str, ...] = ()
PLACE = Path("/var/run/secrets/broker/token")


def here(environ: Mapping[str, str]) -> bool:
    """Whether this is a pod."""
    return bool(environ.get("KUBERNETES_SERVICE_HOST"))


def token(environ: Mapping[str, str], audience: str, within: Budget) -> str:
    """The token that the kubelet projected for us."""
    del environ, within
    if not PLACE.exists():
        raise Refusal(
            "PERMISSION_MISSING",
            f"The pod has no identity token for the broker: mount a projected serviceAccountToken with the broker's "
            f"audience at {PLACE}, or name its file with --token-file.",
            Exit.NOT_LOGGED_IN,
        )
    return tokenfile.token(PLACE, audience)
