"""Bytes on disk to and from NumPy arrays: GGUF, tensor types, `.mhc`, tokens. Knows files, not models."""
