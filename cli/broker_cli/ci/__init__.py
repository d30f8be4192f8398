"""Identity tokens (OpenID Connect) as each CI hands them to its jobs; one module a CI, chosen in ``identity``."""
