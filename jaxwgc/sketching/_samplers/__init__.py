"""Parts and rows sampled by probabilities."""
