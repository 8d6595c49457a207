"""What lies on disk and must be whole: checkpoints, rows, ledgers, seals, fingerprints, weight networks."""
