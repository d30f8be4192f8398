"""Pipelines by the token of the session that their login opened."""

from __future__ import annotations

from broker.auth.session.authenticator import SessionTokens

__all__ = ["SessionTokens"]
