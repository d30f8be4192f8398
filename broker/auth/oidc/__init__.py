"""Pipelines by the identity token that their CI gives them (OpenID Connect)."""

from __future__ import annotations

from broker.auth.oidc.authenticator import Oidc, OidcConfig

__all__ = ["Oidc", "OidcConfig"]
