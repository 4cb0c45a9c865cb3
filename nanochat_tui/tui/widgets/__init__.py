"""Widgets that any mode may use."""
