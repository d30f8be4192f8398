"""Vault or OpenBao: the transit engine."""
