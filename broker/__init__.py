"""The broker: keys generated in an HSM, proven where they are imported, audited in between."""
