"""The ledger of results, and the tables, figures and page made from it."""
