"""What the daemon stands: kills, a full disk, overload, days of work. ``python -m benchmarks.soak`` runs all of it."""
