"""Finished networks to take away: export, describe, inspect, apply, evaluate."""
