"""Keys: their life and use in the HSM."""
