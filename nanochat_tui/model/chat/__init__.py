"""Conversations as prompts: templates, families of them, messages to token ids, thinking apart from the answer."""
