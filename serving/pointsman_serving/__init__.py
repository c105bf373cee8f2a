"""The serving side: scheduler, gateway, engines, models and the command line."""
