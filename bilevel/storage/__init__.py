"""What lies on disk and must be whole: checkpoints, seals, fingerprints, snapshots of weight networks."""
