"""NTK-SAP against the derivative of a jvp, and by hand on a linear network."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import masks, prune, scores


def apply(params, x):
    hidden = jnp.tanh(x @ params["a"] + params["bias"].reshape(1, -1))
    return hidden @ params["b"]


def network(dtype=jnp.float32):
    """Return parameters, a mask and inputs."""
    draw = np.random.default_rng(0)
    array = lambda *shape: jnp.asarray(draw.normal(size=shape), dtype)
    params = {"a": array(3, 4), "b": array(4, 2), "bias": array(4)}
    mask = masks.ones_like(params)
    mask["a"] = mask["a"].at[0, :2].set(False)
    return params, mask, array(6, 3)


def directions(seed, params):
    """Draw the change of each weight as scores.ntk_sap does."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    draws = [
        jax.random.normal(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, draws)


def test_a_small_epsilon_gives_the_derivative_of_the_squared_norm_of_a_jvp():
    """Both masked: S(m) = |J(m w) (m d)|^2, with the Jacobian J of the outputs."""
    with jax.enable_x64(True):
        params, mask, inputs = network(jnp.float64)
        delta = directions(3, params)

        def squared_norm(factors):
            scale = lambda tree: jax.tree.map(jnp.multiply, factors, tree)
            outputs = lambda params: apply(params, inputs)
            _, change = jax.jvp(outputs, (scale(params),), (scale(delta),))
            return (change**2).sum()

        factors = jax.tree.map(lambda m: m.astype(jnp.float64), mask)
        expected = jax.tree.map(
            lambda m, g: abs(m * g), factors, jax.jit(jax.grad(squared_norm))(factors)
        )
        score = functools.partial(scores.ntk_sap, apply_fn=apply, epsilon=1e-8)
        scored = jax.jit(score)(
            jax.random.key(3), params=params, inputs=inputs, mask=mask
        )
        # The difference is of the order of epsilon.
        chex.assert_trees_all_close(scored, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("epsilon", [1e-2, 1.0])
def test_a_linear_network_by_hand_at_any_epsilon(epsilon):
    # The outputs are m_j w_j, one for each row of the identity matrix. So S is the sum of
    # (m_j d_j)^2, and m dS/dm = 2 d^2 at m = 1.
    params = {"w": jnp.array([[1.0], [2.0], [3.0]])}
    scored = scores.ntk_sap(
        jax.random.key(1),
        lambda params, x: x @ params["w"],
        params,
        jnp.eye(3),
        epsilon=epsilon,
    )
    expected = 2 * directions(1, params)["w"] ** 2
    np.testing.assert_allclose(scored["w"], expected, rtol=1e-4)


def test_pruned_weights_score_0_and_one_key_serves_all_rounds():
    params, mask, inputs = network()
    key = jax.random.key(0)
    scored = scores.ntk_sap(key, apply, params, inputs, mask=mask)
    assert (scored["a"][0, :2] == 0).all()
    assert (scored["a"][0, 2:] > 0).all()
    score = lambda params, *, mask: scores.ntk_sap(
        key, apply, params, inputs, mask=mask
    )
    mask, _ = prune.prune(score, params, 0.25, rounds=3)
    assert masks.count(mask) == 5


def test_jit_changes_nothing():
    params, mask, inputs = network()
    score = lambda params, mask: scores.ntk_sap(
        jax.random.key(0), apply, params, inputs, mask=mask
    )
    chex.assert_trees_all_close(
        jax.jit(score)(params, mask), score(params, mask), rtol=1e-3, atol=1e-3
    )


@pytest.mark.usefixtures("without_type_checks")
def test_invalid_arguments_get_a_sentence():
    params, _, inputs = network()
    for epsilon in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(
            ValueError, match=f"a positive number; got {epsilon}. Pass 0.01"
        ):
            scores.ntk_sap(jax.random.key(0), apply, params, inputs, epsilon=epsilon)
    with pytest.raises(TypeError, match="key is 0, not a random key"):
        scores.ntk_sap(0, apply, params, inputs)
    with pytest.raises(TypeError, match="apply_fn returned a tuple, where an array"):
        scores.ntk_sap(jax.random.key(0), lambda p, x: (x, p), params, inputs)
