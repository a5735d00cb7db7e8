"""Training on worker processes that Ray starts: see `RayCluster`."""
