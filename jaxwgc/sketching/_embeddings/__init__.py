"""Random embeddings: matrices that nearly preserve subspaces."""
