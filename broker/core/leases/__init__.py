"""Leases: what was handed out under a session, and how both end."""
