"""Targets: the places that keys can be imported to."""
