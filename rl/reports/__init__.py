"""What a run came to, from its ledger: in JSON, on a page, as curves, in a sentence."""
