"""Untrusted programs, run apart from the system: no network, no files of the user, limited time, memory and output."""
