"""Property tests; they need no server."""
