"""Where the daemon's images come from, one module a way."""
