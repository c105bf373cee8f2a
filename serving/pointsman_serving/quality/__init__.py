"""How well each model would answer a prompt, in microseconds: learned from a file of scores."""
