"""The process in charge of a run: it starts the actors, hands out work and weights, and keeps the ledger."""
