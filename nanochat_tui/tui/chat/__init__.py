"""The chat mode: a transcript, an input, and the reply being written."""
