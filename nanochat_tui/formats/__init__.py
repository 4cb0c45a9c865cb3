"""Bytes on disk to and from NumPy arrays: GGUF, tensor types, `.mhc`, token files. Knows files, not models."""
