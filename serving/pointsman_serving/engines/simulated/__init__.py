"""The Simulated engine: vLLM's API in front of a model of time, with no weights."""
