"""Measurements of the engine and of this machine: speed, quality, what is installed. Run by commands and benchmarks."""
