"""Linear algebra shared by leverage scores, samplers, embeddings and solvers."""
