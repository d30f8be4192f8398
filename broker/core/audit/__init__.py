"""The audit: what is recorded, and the signed heads that vouch for it."""
