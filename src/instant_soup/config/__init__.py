"""Settings: what params.yaml may say, and what each preset puts there; no torch."""
