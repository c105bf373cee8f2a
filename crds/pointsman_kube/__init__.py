"""Thin access to the Kubernetes API: plain dicts in and out, for the operator and the gateway."""
