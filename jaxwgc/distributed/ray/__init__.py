"""Workers that are processes, which Ray starts and finds: see `RayCluster`."""
