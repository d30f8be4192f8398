"""Who is calling: one folder an authenticator. ``app`` builds each from its part of the configuration."""
