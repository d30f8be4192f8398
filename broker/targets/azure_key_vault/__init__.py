"""Azure Key Vault and Managed HSM as a target."""
