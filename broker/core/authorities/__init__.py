"""The keys of the broker's own, and their change: what vouches for audit, operators, server and pages."""
