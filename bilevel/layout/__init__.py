"""Where arrays lie: the mesh, batches split over it, and what several processes decide together."""
