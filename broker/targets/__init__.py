"""Where a key can be imported to: one folder a target."""
