"""A backend on an OpenAI-compatible server: `backend` asks, `http` connects, `stream` and `events` read the answers."""

from nanochat_tui.chat.remote.backend import RemoteBackend, RemoteModel

__all__ = ["RemoteBackend", "RemoteModel"]
