"""Drift: where a target or the HSM is not what the broker's record says."""
