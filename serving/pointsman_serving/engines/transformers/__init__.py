"""The Transformers engine: a model of the transformers library behind vLLM's API."""
