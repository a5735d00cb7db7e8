"""Random matrices that keep subspaces."""
