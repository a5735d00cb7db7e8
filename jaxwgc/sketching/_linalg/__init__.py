"""Linear algebra that scores, samplers, embeddings and solvers share."""
