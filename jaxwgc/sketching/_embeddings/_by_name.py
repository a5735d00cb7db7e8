"""Embeddings by their names."""

from collections.abc import Callable

import jax

from jaxwgc import _validation
from jaxwgc.sketching._embeddings._dense_embeddings import gaussian, rademacher
from jaxwgc.sketching._embeddings._embedding import Embedding
from jaxwgc.sketching._embeddings._row_sampling import row_sampling
from jaxwgc.sketching._embeddings._sparse_embeddings import count_sketch, sparse_sign
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
    """A new embedding by its name, or the given one if its sizes are right."""
    if not isinstance(embedding, Embedding):
        _validation.check_choice("embedding", embedding, tuple(CONSTRUCTORS))
        return CONSTRUCTORS[embedding](key, sketch_size, num_rows)
    sizes = (embedding.sketch_size, embedding.num_rows)
    if sizes != (sketch_size, num_rows):
        raise ValueError(
            "embedding must have (sketch_size, num_rows) = "
            f"{(sketch_size, num_rows)}; got {sizes}"
        )
    return embedding
