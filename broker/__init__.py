"""The broker: keys born in an HSM, proven where they are imported, audited in between."""
