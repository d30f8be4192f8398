"""Trust rules: which identity tokens become which pipeline."""
