"""The engine: the loop, its state and files, its schedule, cost and metrics."""
