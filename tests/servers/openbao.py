"""Fixtures for a real openbao."""
