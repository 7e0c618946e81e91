"""Settings that are typed and said once: bounds, defaults by preset and a line of doc a field."""
