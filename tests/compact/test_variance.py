"""Norms that subtract the mean are exact after features are removed, and made smaller."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import compact, graph, masks, scores
from tests.zoo import users_settings


def _normalized(x: Any, mean: Any, variance: Any) -> Any:
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5)


def with_var(x: Any) -> Any:
    return _normalized(x, x.mean(-1, keepdims=True), x.var(-1, keepdims=True))


def squared(x: Any) -> Any:
    mean = x.mean(-1, keepdims=True)
    return _normalized(x, mean, ((x - mean) ** 2).mean(-1, keepdims=True))


def multiplied(x: Any) -> Any:
    mean = x.sum(-1)[..., None] / x.shape[-1]
    d = mean - x  # the other way round
    return _normalized(x, mean, (d * d).mean(-1, keepdims=True))


def over_all_axes(x: Any) -> Any:
    mean, variance = x.mean((1, 2)), x.var((1, 2))
    return _normalized(x, mean[:, None, None], variance[:, None, None])


def of_equinox(x: Any) -> Any:
    norm = eqx.nn.LayerNorm(8, use_weight=False, use_bias=False)
    return jax.vmap(jax.vmap(norm))(x)


def standardized(x: Any) -> Any:
    """Divide by the standard deviation, without subtracting the mean."""
    return x / (x.std(-1, keepdims=True) + 0.1)


def of_groups(x: Any) -> Any:
    """Normalize two groups of 4 features; a group is removed whole, or one of each."""
    parts = x.reshape(*x.shape[:-1], 2, 4)
    return with_var(parts).reshape(x.shape)


NORMS: list[Callable[[Any], Any]] = [
    with_var, squared, multiplied, over_all_axes, of_equinox, standardized,
]  # fmt: skip


def _network(norm: Callable[[Any], Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A residual network of 8 features whose layers start with a norm."""

    def fn(p: Any, x: Any) -> Any:
        h = x @ p["stem"]
        h = h + jax.nn.relu(norm(h) * p["scale"] @ p["up"]) @ p["down"]
        return norm(h) @ p["head"]

    shapes = {
        "stem": (3, 8),
        "scale": (1, 1, 8),
        "up": (8, 6),
        "down": (6, 8),
        "head": (8, 2),
    }
    keys = jax.random.split(jax.random.key(0), len(shapes))
    draws = zip(shapes.items(), keys, strict=True)
    params = {name: jax.random.normal(key, shape) for (name, shape), key in draws}
    return fn, params


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.__name__)
def test_removed_residual_features_leave_exactly_what_the_mask_keeps(norm):
    with users_settings():
        fn, params = _network(norm)
        x = jax.random.normal(jax.random.key(1), (2, 4, 3))
        groups = graph.channels(fn, params, x)
        found = sorted((kind.size, kind.what) for kind in groups.kinds)
        assert found == [(6, "neurons"), (8, "residual features")]
        magnitudes = scores.magnitude(params)
        mask = masks.select_channels(groups, magnitudes, 0.4, scope="kind")
        small = compact.compact(fn, params, mask, x)
        assert small.info.left == small.info.kept < small.info.dense / 2
        assert small.info.carried == 0
        masked = masks.apply(params, mask)
        for batch in (2, 5):
            x = jax.random.normal(jax.random.key(batch), (batch, 4, 3))
            np.testing.assert_allclose(
                small.fn(small.params, x), fn(masked, x), rtol=2e-4, atol=2e-5
            )
        slope = jax.grad(lambda x: fn(masked, x).sum())(x)
        np.testing.assert_allclose(
            jax.grad(lambda x: small.fn(small.params, x).sum())(x),
            slope, rtol=2e-3, atol=1e-4,
        )  # fmt: skip


def test_groups_are_normalized_by_their_own_mean():
    with users_settings():
        fn, params = _network(of_groups)
        x = jax.random.normal(jax.random.key(1), (2, 4, 3))
        groups = graph.channels(fn, params, x)
        mask = masks.select_channels(
            groups, scores.magnitude(params), 0.5, scope="kind"
        )
        small = compact.compact(fn, params, mask, x)
        assert small.info.left == small.info.kept < small.info.dense
        np.testing.assert_allclose(
            small.fn(small.params, x), fn(masks.apply(params, mask), x),
            rtol=2e-4, atol=2e-5,
        )  # fmt: skip


def test_a_variance_in_bfloat16_is_understood():
    """JAX sums the squares in float32."""
    with users_settings():
        fn, params = _network(squared)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        x = jax.random.normal(jax.random.key(1), (2, 4, 3), jnp.bfloat16)
        groups = graph.channels(fn, params, x)
        assert "residual features" in {kind.what for kind in groups.kinds}
        magnitudes = scores.magnitude(params)
        mask = masks.select_channels(groups, magnitudes, 0.4, scope="kind")
        small = compact.compact(fn, params, mask, x)
        assert small.info.left == small.info.kept
        a, b = small.fn(small.params, x), fn(masks.apply(params, mask), x)
        np.testing.assert_allclose(
            *(np.asarray(o, np.float32) for o in (a, b)), atol=0.2
        )


def test_a_variance_of_constants_that_are_not_zero_keeps_them():
    """Only zeros count as the square of the mean; a feature of ones is another number."""

    def fn(p: Any, x: Any) -> Any:
        h = x @ p["w"] + p["b"]
        return with_var(h) @ p["v"]

    with users_settings():
        x = jax.random.normal(jax.random.key(0), (2, 3))
        params = {
            "w": jax.random.normal(jax.random.key(1), (3, 6)),
            "b": jnp.ones((1, 6)),
            "v": jax.random.normal(jax.random.key(2), (6, 2)),
        }
        mask = masks.ones_like(params)
        mask["w"] = mask["w"].at[:, 3:].set(False)
        mask["v"] = mask["v"].at[4:].set(False)
        small = compact.compact(fn, params, mask, x)
        assert small.params["b"].shape == (1, 6)
        masked = masks.apply(params, mask)
        np.testing.assert_allclose(
            small.fn(small.params, x), fn(masked, x), rtol=1e-5, atol=1e-6
        )
