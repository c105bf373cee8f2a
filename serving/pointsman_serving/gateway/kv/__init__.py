"""What replicas tell of their KV caches: subscriptions, and what is learned from streams."""
