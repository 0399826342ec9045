"""The daemon's web page: what it does, live, and what it found last."""
