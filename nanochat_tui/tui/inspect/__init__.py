"""The inspect mode: what is in a model file, looked at from every side, without running it."""
