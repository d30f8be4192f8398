"""Operators: people who call with a client certificate."""
