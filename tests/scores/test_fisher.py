"""Fisher against NumPy, and against a gradient of each example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import masks, scores


def squared_error(params, batch):
    inputs, targets = batch
    return 0.5 * ((inputs @ params["w"] - targets) ** 2).mean()


def examples(number, seed=0):
    draw = np.random.default_rng(seed)
    return draw.normal(size=(number, 3)), draw.normal(size=number)


@pytest.mark.parametrize("number", [1, 31, 32, 70])
def test_linear_regression_equals_numpy(number):
    """The gradient of one example is its error times its inputs."""
    inputs, targets = examples(number)
    w = np.array([1.0, -2.0, 0.5])
    gradients = (inputs @ w - targets)[:, None] * inputs
    expected = 0.5 * w**2 * (gradients**2).mean(0)
    with jax.enable_x64(True):
        batches = [(jnp.asarray(inputs), jnp.asarray(targets))]
        scored = scores.fisher(squared_error, {"w": jnp.asarray(w)}, batches)["w"]
        np.testing.assert_allclose(scored, expected, rtol=1e-12)


def test_batches_of_any_size_give_the_mean_over_all_examples():
    def loss(params, batch):
        inputs, targets = batch
        hidden = jnp.tanh(inputs @ params["a"])
        return ((hidden @ params["b"] - targets) ** 2).mean()

    draw = np.random.default_rng(1)
    inputs, targets = examples(45)
    with jax.enable_x64(True):
        params = {
            "a": jnp.asarray(draw.normal(size=(3, 4))),
            "b": jnp.asarray(draw.normal(size=4)),
        }
        mask = masks.ones_like(params)
        mask["a"] = mask["a"].at[0, 1:].set(False)
        batches = [
            (jnp.asarray(inputs[part]), jnp.asarray(targets[part]))
            for part in (slice(0, 40), slice(40, 45))
        ]
        scored = scores.fisher(loss, params, batches, mask=mask)
        pruned = masks.apply(params, mask)
        gradients = [
            jax.grad(loss)(pruned, (inputs[i : i + 1], targets[i : i + 1]))
            for i in range(45)
        ]
        for name, weight in params.items():
            squares = np.mean([np.square(g[name]) for g in gradients], axis=0)
            np.testing.assert_allclose(
                scored[name], 0.5 * weight**2 * squares, rtol=1e-12
            )


def test_arrays_without_a_common_number_of_examples_are_refused():
    inputs, targets = (jnp.asarray(part, jnp.float32) for part in examples(4))
    params = {"w": jnp.ones(3)}
    for batch in ((inputs, targets[:3]), (inputs, jnp.float32(1))):
        with pytest.raises(ValueError, match=r"first axis counts the examples"):
            scores.fisher(squared_error, params, [batch])
