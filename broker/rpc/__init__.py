"""The gRPC edge: decode, one call into the core, encode."""
