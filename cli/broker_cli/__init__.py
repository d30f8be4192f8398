"""The command ``broker``: knows the wire and nothing of the server."""
