"""Imports: keys brought to targets, and proven there."""
