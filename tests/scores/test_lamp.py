"""LAMP against NumPy, and against the order of the magnitudes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import masks, scores


def reference(weights):
    """Return the scores of a leaf by their definition, in float64."""
    flat = np.asarray(weights, np.float64).ravel() ** 2
    order = np.argsort(flat, kind="stable")
    scored = np.zeros(flat.size)
    for rank, index in enumerate(order):
        scored[index] = flat[index] / flat[order[rank:]].sum()
    return scored.reshape(np.shape(weights))


def test_scores_by_hand():
    # Squares 1, 4, 9, 4: ascending sums from the top are 18, 17, 13, 9; the ties 4 by index.
    scored = scores.lamp({"w": jnp.array([[1.0, -2.0], [3.0, 2.0]])})["w"]
    np.testing.assert_allclose(scored, [[1 / 18, 4 / 17], [1, 4 / 13]], rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_each_leaf_equals_numpy_at_any_scale_and_its_largest_scores_exactly_1(scale):
    draw = np.random.default_rng(0)
    params = {
        "a": jnp.asarray(scale * draw.normal(size=(40, 50)), jnp.float32),
        "b": jnp.asarray(scale * draw.integers(-3, 4, (30, 20)), jnp.float32),  # ties
    }
    scored = scores.lamp(params)
    for name, weight in params.items():
        np.testing.assert_allclose(scored[name], reference(weight), rtol=1e-6)
        assert scored[name].max() == 1.0
        by_magnitude = np.asarray(scored[name]).ravel()[
            np.argsort(np.abs(weight).ravel(), kind="stable")
        ]
        assert (np.diff(by_magnitude) >= 0).all()


def test_scores_never_fall_with_the_magnitude():
    """Neighbors of 20,000 nearly equal weights differ by about the rounding of a sum."""
    weight = 1 + 1e-3 * jax.random.normal(jax.random.key(0), (20_000,))
    scored = np.asarray(scores.lamp({"w": weight})["w"])
    order = np.argsort(np.abs(weight), kind="stable")
    assert (np.diff(scored[order]) >= 0).all()
    assert scored.max() == 1.0


def test_pruned_weights_score_0_and_are_left_out_of_the_sums():
    mask = {"w": jnp.array([True, False, True, True])}
    scored = scores.lamp({"w": jnp.array([1.0, 9.0, 2.0, 0.0])}, mask=mask)["w"]
    np.testing.assert_allclose(scored, [1 / 5, 0, 1, 0], rtol=1e-6)


def test_leaves_of_zeros_and_empty_leaves_score_0():
    scored = scores.lamp({"zero": jnp.zeros((2, 3)), "empty": jnp.zeros((0, 3))})
    assert scored["zero"].tolist() == [[0.0] * 3] * 2
    assert scored["empty"].shape == (0, 3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
def test_a_leaf_in_half_precision_is_summed_in_float32(dtype):
    with jax.enable_x64(True):
        weight = jnp.asarray(np.random.default_rng(1).normal(size=4000), dtype)
        scored = scores.lamp({"w": weight})["w"]
        assert scored.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
        np.testing.assert_allclose(scored, reference(weight), rtol=1e-6)


def test_global_selection_empties_no_layer():
    draw = np.random.default_rng(2)
    params = {
        name: jnp.asarray(scale * draw.normal(size=(20, 20)), jnp.float32)
        for name, scale in (("small", 1e-6), ("large", 1.0))
    }
    mask = masks.select(scores.lamp(params), 2 / 800)
    assert {name: int(leaf.sum()) for name, leaf in mask.items()} == {
        "small": 1,
        "large": 1,
    }


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(
        ValueError, match="not finite at 'w'.*check that params are fin"
    ):
        scores.lamp({"w": jnp.array([1.0, jnp.inf])})
