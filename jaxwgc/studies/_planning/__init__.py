"""Plans: choice of the code, the replication factor and the waiting rule."""
