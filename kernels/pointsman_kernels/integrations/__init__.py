"""Our MoE layer inside other people's models."""
