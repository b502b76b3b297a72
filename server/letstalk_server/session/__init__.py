"""One avatar, its playout clock and its connections."""
