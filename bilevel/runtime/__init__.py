"""Everything around the mathematics: devices, run folders, metrics, progress, tables and reports."""
