"""Rotations: a key's next version, everywhere the key is."""
