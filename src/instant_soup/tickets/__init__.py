"""Finished networks to take away: exported, described, inspected, applied, evaluated."""
