"""The gateway inside Kubernetes: its route table, replicas and keys, read from the API server."""
