"""The checks that the whole library shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwgc._common import array_validation, arrays, validation


@pytest.mark.parametrize(
    ("check", "rule", "right", "wrong"),
    [
        (
            validation.check_int,
            "a.* int.*",
            [3, np.int8(3), np.uint64(3), np.array(3), jnp.int32(3)],
            [True, np.True_, 3.0, np.float32(3), "3", None, np.ones(1, int)[:0]],
        ),
        (
            array_validation.check_number,
            "a real scalar",
            [0, 0.5, np.float32(1), np.array(1), jnp.ones(())],
            [
                *("1", None, 1j, np.complex64(1), np.ones(1), [1.0], {}, jnp.ones(2)),
                *(True, np.True_, np.array(False), jnp.array(True), np.array("1")),
            ],
        ),
        (
            validation.check_bool,
            "True or False",
            [True, np.False_],
            ["no", 0, 1, None, np.ones(1, bool), 1.0],
        ),
    ],
)
def test_scalars_of_a_wrong_type_are_rejected(check, rule, right, wrong):
    for value in right:
        assert check("value", value) in (None, value)
    for value in wrong:
        with pytest.raises(TypeError, match=f"value must be {rule}; got "):
            check("value", value)


def test_ints_are_those_of_python():
    assert type(validation.check_int("size", np.int8(3), minimum=3)) is int
    with pytest.raises(TypeError, match="size must be a Python int, since it sets"):
        jax.jit(lambda value: validation.check_int("size", value))(3)


def test_numbers_that_are_traced_pass():
    """Their type is known, their value is not."""

    def check(value):
        array_validation.check_number("rate", value, minimum=0)
        return value

    assert jax.jit(check)(-1.0) == -1
    values = np.arange(-2.0, 2)
    np.testing.assert_array_equal(jax.vmap(check)(values), values)
    with pytest.raises(TypeError, match="rate must be a real scalar"):
        jax.jit(check)(np.ones(2))


class TestDtypes:
    leaves = {
        "bool": [np.ones(2, bool), True, [False]],
        "int": [1, np.ones(2, np.uint8), jnp.ones(2, jnp.int4)],
        "float": [1.5, np.ones(2), jnp.ones(2, jnp.bfloat16)],
        "complex": [1j, jnp.ones(2, jnp.complex64)],
        "key": [jax.random.key(0)],
        "other": ["a", object(), np.array(None), np.array(["a"])],
    }
    kinds = {
        "numbers or bools": {"bool", "int", "float", "complex"},
        "real numbers or bools": {"bool", "int", "float"},
        "real numbers": {"int", "float"},
        "real or complex floats": {"float", "complex"},
        "real floats": {"float"},
        "integers": {"int"},
        "bools": {"bool"},
        "keys": {"key"},
        "numbers, bools or keys": {"bool", "int", "float", "complex", "key"},
    }

    @pytest.mark.parametrize("kind", kinds)
    def test_kinds(self, kind):
        for kind_of_leaf, leaves in self.leaves.items():
            for leaf in leaves:
                tree = {"x": [leaf]}
                if kind_of_leaf in self.kinds[kind]:
                    array_validation.check_dtypes("tree", tree, kind)
                    continue
                rule = rf"tree\['x'\]\[0\].* must be {kind}; got "
                with pytest.raises(TypeError, match=rule):
                    array_validation.check_dtypes("tree", tree, kind)

    def test_every_kind_is_known_here(self):
        assert set(self.kinds) == set(arrays.KINDS)


class TestKey:
    @pytest.mark.parametrize("impl", ["raw", "threefry2x32", "rbg"])
    def test_kinds(self, impl):
        """A raw key is as long as the generator wants it; rbg keys have four words."""
        key = jax.random.PRNGKey(0) if impl == "raw" else jax.random.key(0, impl=impl)
        assert array_validation.check_key(key) is key
        keys = jax.random.split(key, 3)
        with pytest.raises(ValueError, match=r"key must be one key.*\(3"):
            array_validation.check_key(keys)
        seen = []
        jax.vmap(lambda one_key: seen.append(array_validation.check_key(one_key)) or 0)(
            keys
        )
        assert len(seen) == 1

    def test_other_types_and_shapes(self):
        for key in (0, 1.0, None, "key", np.zeros(2), np.zeros(2, int)):
            with pytest.raises(TypeError, match="seed must be a PRNG key from jax"):
                array_validation.check_key(key, "seed")
        for shape in ((), (3, 2), (3,), (0,)):
            with pytest.raises(ValueError, match="seed must be one key"):
                array_validation.check_key(np.zeros(shape, np.uint32), "seed")


def test_values_are_shown_up_to_a_hundred_characters():
    assert validation.in_short("x" * 98) == repr("x" * 98)
    assert validation.in_short("x" * 99) == "a str"
