"""Exact knowledge of cached prefixes, from engines' KV events."""
