"""Compaction does not depend on how a device rounds the operands of its products."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir

from jaxprune import compact, masks


def network(precision: Any) -> tuple[Any, Any, Any]:
    """Return a function with products at several depths, its parameters and a mask."""

    def dot(x: Any, kernel: Any) -> Any:
        return jnp.dot(x, kernel, precision=precision)

    def fn(p: Any, x: Any) -> Any:
        h = dot(jax.nn.relu(dot(x, p["w"]) + p["b"]), p["v"])
        h, _ = lax.scan(lambda h, kernel: (jnp.tanh(dot(h, kernel)), None), h, p["s"])
        more = lambda h: h + jnp.tanh(dot(h, p["s"][0]))
        return lax.while_loop(lambda h: jnp.abs(h).max() < 2, more, h)  # not followed

    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape) / 3, jnp.float32)
    params = {"w": draw(4, 16), "b": draw(1, 16), "v": draw(16, 8), "s": draw(2, 8, 8)}
    mask = masks.ones_like(params)
    mask["w"] = mask["w"].at[:, 5:].set(False)  # eleven units emit their biases
    return fn, params, mask


def test_a_network_that_asks_for_tf32_is_compacted_where_there_is_none():
    """A CPU refuses such products, so this also shows that the check runs without them."""
    x = jnp.ones((2, 4))
    fn, params, mask = network(lax.DotAlgorithmPreset.TF32_TF32_F32)
    with pytest.raises(ValueError, match="TF32_TF32_F32' is not supported"):
        fn(params, x)
    tf32 = compact.compact(fn, params, mask, x)
    fn, params, mask = network(None)
    small = compact.compact(fn, params, mask, x)
    assert tf32.info.sizes == small.info.sizes
    assert tf32.info.carried == small.info.carried == 8
    assert tf32.params["v"].shape == (5, 8)


def test_the_precision_of_products_is_that_of_the_caller():
    fn, params, mask = network(None)
    small = compact.compact(fn, params, mask, jnp.ones((2, 4)))

    def precisions() -> list[bool]:
        program = jax.jit(small.fn.__call__).lower(small.params, jnp.ones((2, 4)))
        lines = program.as_text().splitlines()
        return ["HIGHEST" in line for line in lines if "dot_general" in line]

    assert sum(precisions()) == 0
    with jax.default_matmul_precision("highest"):
        # The product in the while loop stays as it was traced.
        assert sorted(precisions()) == [False, True, True, True, True]


def test_another_precision_and_another_number_of_examples():
    fn = lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"]
    _, params, mask = network(None)
    small = compact.compact(fn, params, mask, jnp.ones((2, 4)))
    x = jnp.ones((5, 4))
    expected = fn(masks.apply(params, mask), x)
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(
            small.fn(small.params, x), expected, rtol=1e-5, atol=1e-6
        )


def test_a_solver_that_asks_for_tf32_is_compacted_where_there_is_none():
    def fn(p: Any, x: Any) -> Any:
        matrix = jnp.eye(8) + p["w"] @ p["w"].T
        solved, _ = jax.scipy.sparse.linalg.cg(
            lambda v: jnp.dot(
                matrix, v, precision=lax.DotAlgorithmPreset.TF32_TF32_F32
            ),
            x,
            maxiter=3,
        )
        return solved @ p["v"]

    params = {"w": jnp.eye(8) / 8, "v": jnp.ones((8, 4))}
    mask = masks.ones_like(params)
    mask["v"] = mask["v"].at[4:].set(False)
    small = compact.compact(fn, params, mask, jnp.ones(8))
    assert any("while" in name or "solve" in name for name in small.info.opaque)


def test_a_parameter_of_the_users_primitive_may_be_called_precision():
    rounding = Primitive("rounding")
    rounding.def_impl(lambda x, *, precision: jnp.round(x, precision))
    rounding.def_abstract_eval(lambda x, *, precision: x)
    mlir.register_lowering(
        rounding,
        mlir.lower_fun(
            lambda x, *, precision: jnp.round(x, precision), multiple_results=False
        ),
    )
    fn = lambda p, x: rounding.bind(x @ p["w"], precision=2)
    params = {"w": jnp.ones((4, 8))}
    small = compact.compact(fn, params, masks.ones_like(params), jnp.ones((2, 4)))
    assert small.info.opaque == ("rounding at ''",)


def test_the_precision_of_convolutions_is_that_of_the_caller():
    def fn(p: Any, x: Any) -> Any:
        numbers = ("NHWC", "HWIO", "NHWC")
        conv = lambda x, kernel: lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=numbers
        )
        return conv(jax.nn.relu(conv(x, p["k"])), p["l"])

    params = {"k": jnp.ones((3, 3, 3, 8)), "l": jnp.ones((3, 3, 8, 4))}
    mask = masks.ones_like(params)
    mask["k"] = mask["k"].at[..., 5:].set(False)
    x = jnp.ones((2, 8, 8, 3))
    small = compact.compact(fn, params, mask, x)
    with jax.default_matmul_precision("highest"):
        text = jax.jit(small.fn.__call__).lower(small.params, x).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(lines) == 2
    assert all("HIGHEST" in line for line in lines)
