"""The checks that the whole library shares."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwgc import _arrays, _validation


@pytest.mark.parametrize(
    ("check", "rule", "right", "wrong"),
    [
        (
            _validation.check_int,
            "a.* int.*",
            [3, np.int8(3), np.uint64(3), np.array(3), jnp.int32(3)],
            [True, np.True_, 3.0, np.float32(3), "3", None, np.ones(1, int)[:0]],
        ),
        (
            _validation.check_number,
            "a real scalar",
            [0, 0.5, np.float32(1), np.array(1), jnp.ones(())],
            [
                *("1", None, 1j, np.complex64(1), np.ones(1), [1.0], {}, jnp.ones(2)),
                *(True, np.True_, np.array(False), jnp.array(True), np.array("1")),
            ],
        ),
        (
            _validation.check_bool,
            "True or False",
            [True, np.False_],
            ["no", 0, 1, None, np.ones(1, bool), 1.0],
        ),
    ],
)
def test_scalars(check, rule, right, wrong):
    for value in right:
        assert check("value", value) in (None, value)
    for value in wrong:
        with pytest.raises(TypeError, match=f"value must be {rule}; got "):
            check("value", value)


def test_ints_are_those_of_python():
    assert type(_validation.check_int("size", np.int8(3), minimum=3)) is int
    with pytest.raises(TypeError, match="size must be a Python int, since it sets"):
        jax.jit(lambda value: _validation.check_int("size", value))(3)


class TestNumber:
    @pytest.mark.parametrize(
        ("value", "bounds", "rule"),
        [
            (2.5, {"minimum": 3}, "at least 3; got 2.5"),
            (2.5, {"maximum": 2}, "at most 2; got 2.5"),
            (0, {"positive": True}, "positive; got 0"),
            (np.nan, {}, "a number; got nan"),
            (np.float32("nan"), {}, "a number; got nan"),
            (jnp.array(jnp.nan), {}, "a number; got nan"),
        ],
    )
    def test_bounds(self, value, bounds, rule):
        with pytest.raises(ValueError, match=f"rate must be {rule}"):
            _validation.check_number("rate", value, **bounds)

    def test_values_that_are_traced_pass(self):
        """Their type is known, their value is not."""

        def check(value):
            _validation.check_number("rate", value, minimum=0)
            return value

        assert jax.jit(check)(-1.0) == -1
        values = np.arange(-2.0, 2)
        np.testing.assert_array_equal(jax.vmap(check)(values), values)
        with pytest.raises(TypeError, match="rate must be a real scalar"):
            jax.jit(check)(np.ones(2))

    def test_values_that_must_not_be_traced(self):
        def check(value):
            _validation.check_number("rate", value, traceable=False)
            return value

        assert check(0.5) == 0.5
        with pytest.raises(TypeError, match="rate must be concrete, since"):
            jax.jit(check)(0.5)


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
        "a bool mask": {"bool"},
        "keys": {"key"},
        "numbers, bools or keys": {"bool", "int", "float", "complex", "key"},
    }

    @pytest.mark.parametrize("kind", kinds)
    def test_kinds(self, kind):
        for own, leaves in self.leaves.items():
            for leaf in leaves:
                tree = {"x": [leaf]}
                if own in self.kinds[kind]:
                    _validation.check_dtypes("tree", tree, kind)
                    continue
                rule = rf"tree\['x'\]\[0\].* must be {kind}; got "
                with pytest.raises(TypeError, match=rule):
                    _validation.check_dtypes("tree", tree, kind)

    def test_every_kind_is_known_here(self):
        assert set(self.kinds) == set(_arrays.KINDS)


class TestKey:
    @pytest.mark.parametrize("impl", ["raw", "threefry2x32", "rbg"])
    def test_kinds(self, impl):
        """A raw key is as long as the generator wants it; rbg keys have four words."""
        raw, typed = jax.random.PRNGKey(0), jax.random.key
        key = raw if impl == "raw" else typed(0, impl=impl)
        assert _validation.check_key(key) is key
        keys = jax.random.split(key, 3)
        with pytest.raises(ValueError, match=r"key must be one key.*\(3"):
            _validation.check_key(keys)
        seen = []
        jax.vmap(lambda own: seen.append(_validation.check_key(own)) or 0)(keys)
        assert len(seen) == 1

    @pytest.mark.parametrize(
        "key", [0, 1.0, None, "key", np.zeros(2), np.zeros(2, int)]
    )
    def test_other_types(self, key):
        with pytest.raises(TypeError, match="seed must be a PRNG key from jax"):
            _validation.check_key(key, "seed")

    @pytest.mark.parametrize("shape", [(), (3, 2), (3,), (0,)])
    def test_raw_keys_of_the_wrong_shape(self, shape):
        with pytest.raises(ValueError, match="seed must be one key"):
            _validation.check_key(np.zeros(shape, np.uint32), "seed")


class TestArrays:
    def test_choice(self):
        assert _validation.check_choice("method", "qr", ("qr", "svd")) == "qr"
        for value in ("QR", "", None, 1, ["qr"]):
            rule = "method must be one of 'qr', 'svd'; got " + re.escape(repr(value))
            with pytest.raises(ValueError, match=rule):
                _validation.check_choice("method", value, ("qr", "svd"))

    def test_leading_axis(self):
        tree = {"a": np.ones((3, 2)), "b": [jnp.ones(3), None]}
        _validation.check_leading_axis("parts", tree, 3, "num_parts")
        for leaf, shape in ((np.ones((2, 3)), "2, 3"), (1.0, "")):
            rule = (
                r"parts\['b'\]\[1\] must have a leading axis of num_parts = 3; "
                rf"got shape \({shape}\)"
            )
            with pytest.raises(ValueError, match=rule):
                _validation.check_leading_axis(
                    "parts", {**tree, "b": [np.ones(3), leaf]}, 3, "num_parts"
                )
        with pytest.raises(ValueError, match="parts must have at least one array; got"):
            _validation.check_leading_axis("parts", {"a": None}, 3, "num_parts")

    def test_is_traced(self):
        assert not _validation.is_traced(1, np.ones(2), {"a": jnp.ones(2)}, None)
        seen = []
        jax.jit(lambda x: seen.append(_validation.is_traced(1, {"a": [x]})) or x)(1.0)
        assert seen == [True]
