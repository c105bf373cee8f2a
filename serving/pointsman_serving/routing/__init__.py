"""The scheduler: a pure core that chooses a pool and a replica for every request."""
