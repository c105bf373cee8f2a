"""A discrete-event simulator of gateways in front of engines. Pure and deterministic by seed."""
