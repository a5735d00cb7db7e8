"""The check that every function which takes one code makes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, stragglers, studies

KEY = jax.random.key(0)
MASK = np.ones(4, bool)
BATCH = jax.vmap(lambda key: codes.cyclic_repetition(key, 4, 1))(jax.random.split(KEY))
TAKERS = {
    "aggregate": lambda code: jaxwgc.coded_aggregate(code, stragglers.uniform(1), KEY),
    "clustered": lambda code: codes.clustered(code, 2),
    "decode": lambda code: jaxwgc.decode(code, jnp.ones((4, 3)), MASK, jnp.ones(3)),
    "decoding_error": lambda code: jaxwgc.decoding_error(code, MASK),
    "diagnose": lambda code: studies.diagnose(code, KEY),
    "encode": lambda code: jaxwgc.encode(code, jnp.ones((4, 3))),
    "gradients": lambda code: jaxwgc.decoded_value_and_grad(lambda p, x: p @ x, code),
    "multi_message": codes.multi_message,
    "learn_entries": lambda code: studies.learn_entries(
        code, stragglers.uniform(1), KEY
    ),
    "partial": lambda code: codes.partially_coded(code, 1),
    "weighted": lambda code: jaxwgc.weighted(code, np.ones(4)),
    "worst_pattern": lambda code: studies.worst_pattern(code, 1),
}


@pytest.mark.parametrize("name", TAKERS)
def test_one_code_and_one_wording(name):
    with pytest.raises(TypeError, match="code must be a GradientCode; got 'code'"):
        TAKERS[name]("code")
    rule = r"code must be one code .use jax.vmap for more.; got .* \(2, 4, 4\)"
    with pytest.raises(ValueError, match=rule):
        TAKERS[name](BATCH)
