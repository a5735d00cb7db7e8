"""Embeddings by their names."""

from collections.abc import Callable

import jax

from jaxwgc import _validation
from jaxwgc.sketching._embeddings._dense_embeddings import gaussian, rademacher
from jaxwgc.sketching._embeddings._embedding import Embedding
from jaxwgc.sketching._embeddings._row_sampling import row_sampling
from jaxwgc.sketching._embeddings._sparse_embeddings import (
    NUM_NONZEROS,
    count_sketch,
    sparse_sign,
)
from jaxwgc.sketching._embeddings._srht import srht

CONSTRUCTORS: dict[str, Callable[..., Embedding]] = {
    "gaussian": gaussian,
    "rademacher": rademacher,
    "srht": srht,
    "count_sketch": count_sketch,
    "sparse_sign": sparse_sign,
    "row_sampling": row_sampling,
}


def embed(
    embedding: str | Embedding, key: jax.Array, sketch_size: int, num_rows: int
) -> Embedding:
    """A new embedding by its name, or the given one if its sizes are right.

    `sparse_sign` has fewer non-zeros than by default where there is no room for them.
    """
    if not isinstance(embedding, Embedding):
        _validation.check_choice("embedding", embedding, tuple(CONSTRUCTORS))
        if embedding == "sparse_sign":
            num_nonzeros = min(NUM_NONZEROS, sketch_size)
            return sparse_sign(key, sketch_size, num_rows, num_nonzeros)
        return CONSTRUCTORS[embedding](key, sketch_size, num_rows)
    sizes = (embedding.sketch_size, embedding.num_rows)
    if sizes != (sketch_size, num_rows):
        raise ValueError(
            "embedding must have (sketch_size, num_rows) = "
            f"{(sketch_size, num_rows)}; got {sizes}"
        )
    return embedding
