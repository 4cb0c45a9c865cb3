"""Prompts to tokens: models, sessions and the scheduler of many replies."""
