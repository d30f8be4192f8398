"""Fixtures for a real softhsm."""
