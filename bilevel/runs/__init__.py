"""A run and the folder that it leaves: what it is told, its methods one after another, metrics, progress, results."""
