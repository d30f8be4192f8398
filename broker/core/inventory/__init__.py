"""The inventory: each key with all that is known of it beside its own row."""
