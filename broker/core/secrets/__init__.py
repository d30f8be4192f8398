"""Secrets: sealed values in versions, and the root key that wraps them."""
