"""The HTTP server: OpenAI's interface, a chat page and metrics in front of one model."""
