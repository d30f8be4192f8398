"""The gRPC edge: decode, one call into the core, encode."""

import os

# gRPC's own library writes a line on stderr for many things that any unauthenticated caller can do, without a limit.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
