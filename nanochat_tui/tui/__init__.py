"""The terminal application. The only room that imports Textual; it talks to models through `chat` alone."""
