"""Typed settings, each said once: bounds, defaults by preset, and a line of documentation."""
