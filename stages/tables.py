"""Results → reports: the ledger, tables and figures; and, at last, everything into MLflow."""
