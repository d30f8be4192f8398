"""Who is calling: one folder an authenticator."""
