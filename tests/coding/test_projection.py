"""Random projections of messages, and their keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwgc.coding._projection import key_from, project

KEY = jax.random.key(3)


projected = jax.jit(project, static_argnums=2)


class TestProjection:
    @pytest.mark.parametrize("length", [3, 1024, 1500, 40_000])
    def test_keeps_norms_and_relations(self, length):
        generator = np.random.default_rng(length)
        rows = generator.normal(size=(6, length))
        rows[5] = rows[:5].sum(0)
        drawn = projected(KEY, rows.astype(np.float32), 400)
        ratios = np.linalg.norm(drawn, axis=1) / np.linalg.norm(rows, axis=1)
        np.testing.assert_allclose(ratios, 1, atol=0.2)
        # A few roundings, however many entries are added up.
        miss = np.linalg.norm([1, 1, 1, 1, 1, -1] @ np.asarray(drawn, np.float64))
        assert miss < 8 * 2**-24 * np.linalg.norm(drawn[5])

    def test_notices_every_entry(self):
        """An error anywhere shows with its size."""
        rows = np.eye(2, 5000, dtype=np.float32)
        base = projected(KEY, rows, 8)
        for place in (0, 1023, 1024, 2047, 4096, 4999):
            moved = rows.copy()
            moved[1, place] += 5
            assert 1 < np.linalg.norm(projected(KEY, moved, 8) - base) < 15

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64, jnp.bfloat16])
    def test_key_depends_on_every_message(self, dtype):
        messages = np.ones((5, 4, 5000), dtype)
        messages[range(4), range(4), 3] += 1
        keys = jax.jit(jax.vmap(lambda batch: jax.random.key_data(key_from(batch))))
        assert len(np.unique(keys(messages), axis=0)) == 5
