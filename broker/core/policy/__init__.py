"""The policy: who may do what."""
