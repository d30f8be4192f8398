"""Requests that wait for other people's word: seen, approved, rejected, and forgotten in the end."""
