"""ProsPr by hand, against SNIP, and against finite differences."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import masks, scores


def half_square(params, batch):
    return 0.5 * batch * params["w"].sum() ** 2


def network_loss(params, batch):
    inputs, targets = batch
    hidden = jnp.tanh(inputs @ params["a"])
    return ((hidden @ params["b"] - targets) ** 2).mean()


def network(dtype=jnp.float32):
    """Return parameters, a mask and two batches of different sizes."""
    draw = np.random.default_rng(0)
    array = lambda *shape: jnp.asarray(draw.normal(size=shape), dtype)
    params = {"a": array(3, 4), "b": array(4)}
    mask = masks.ones_like(params)
    mask["a"] = mask["a"].at[0, :2].set(False)
    return params, mask, [(array(5, 3), array(5)), (array(6, 3), array(6))]


def test_a_quadratic_by_hand():
    # L = w^2 / 2 from w = 2, with rate 0.5 and momentum 0.9:
    # v1 = w, w1 = 0.5 w; v2 = 1.4 w, w2 = -0.2 w; v3 = 1.06 w, w3 = -0.73 w.
    # w dL(w3)/dw = 0.73^2 w^2.
    params, batches = {"w": jnp.array([2.0])}, [jnp.float32(1)]
    for steps, factor in enumerate((1, 0.5, -0.2, -0.73)):
        scored = scores.prospr(half_square, params, batches, steps=steps)
        np.testing.assert_allclose(scored["w"], [4 * factor**2], rtol=1e-6)


def test_each_step_takes_the_next_batch_and_all_losses_are_summed():
    # L = b w^2 / 2 with b = 1, 3, 1 from w = 1, at rate 0.1: v1 = 1, w1 = 0.9;
    # v2 = 0.9 + 2.7 = 3.6, w2 = 0.54; v3 = 3.24 + 0.54 = 3.78, w3 = 0.162.
    # The losses sum to (1 + 3) / 2 times the square of the last weight.
    batches = [jnp.float32(1), jnp.float32(3)]
    for steps, factor in ((1, 0.9), (2, 0.54), (3, 0.162)):
        scored = scores.prospr(
            half_square,
            {"w": jnp.array([1.0])},
            batches,
            steps=steps,
            learning_rate=0.1,
        )
        np.testing.assert_allclose(scored["w"], [4 * factor**2], rtol=1e-6)


@pytest.mark.parametrize("is_masked", [False, True])
def test_without_steps_scores_equal_those_of_snip(is_masked):
    params, mask, batches = network()
    mask = mask if is_masked else None
    chex.assert_trees_all_equal(
        scores.prospr(network_loss, params, batches, mask=mask, steps=0),
        scores.snip(network_loss, params, batches, mask=mask),
    )


def test_scores_equal_finite_differences_in_the_mask():
    """The factors of the weights change by 1e-6; pruned weights have the factor 0."""
    with jax.enable_x64(True):
        params, mask, batches = network(jnp.float64)
        options = {"steps": 3, "learning_rate": 0.2}

        @jax.jit
        def final_loss(factors):
            weights = jax.tree.map(jnp.multiply, factors, params)
            velocity = jax.tree.map(jnp.zeros_like, weights)
            for step in range(options["steps"]):
                slope = jax.grad(network_loss)(weights, batches[step % 2])
                slope = masks.apply(slope, mask)
                velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, slope)
                weights = jax.tree.map(lambda w, v: w - 0.2 * v, weights, velocity)
            return sum(network_loss(weights, batch) for batch in batches)

        factors = jax.tree.map(lambda m: m.astype(jnp.float64), mask)
        score = functools.partial(scores.prospr, network_loss, **options)
        scored = jax.jit(score)(params, batches, mask=mask)
        for name, leaf in params.items():
            for index in np.ndindex(leaf.shape):
                moved = [
                    {**factors, name: factors[name].at[index].add(step)}
                    for step in (1e-6, -1e-6)
                ]
                ahead, behind = map(final_loss, moved)
                expected = abs(ahead - behind) / 2e-6
                np.testing.assert_allclose(scored[name][index], expected, rtol=1e-6)


def test_jit_changes_nothing_and_does_not_recompile():
    params, mask, batches = network()
    traces = []

    @jax.jit
    def scored(params, mask, batches):
        traces.append(1)
        return scores.prospr(network_loss, params, batches, mask=mask)

    eager = scores.prospr(network_loss, params, batches, mask=mask)
    chex.assert_trees_all_close(scored(params, mask, batches), eager, rtol=1e-4)
    scored(jax.tree.map(jnp.negative, params), masks.ones_like(params), batches)
    assert len(traces) == 1


@pytest.mark.usefixtures("without_type_checks")
def test_invalid_arguments_get_a_sentence():
    score = functools.partial(
        scores.prospr, half_square, {"w": jnp.ones(1)}, [jnp.float32(1)]
    )
    for steps in (-1, 1.5):
        with pytest.raises(
            ValueError, match=rf"int of at least 0; got {steps}. Pass 3"
        ):
            score(steps=steps)
    with pytest.raises(ValueError, match="a finite number; got inf. Pass 0.5"):
        score(learning_rate=float("inf"))
    with pytest.raises(
        ValueError, match="not finite at 'w'.*pass a smaller learning_rate"
    ):
        score(learning_rate=1e20)
    with pytest.raises(TypeError, match="loss_fn returned a tuple of 2"):
        scores.prospr(
            lambda p, x: (p["w"].sum(), 0), {"w": jnp.ones(1)}, [jnp.float32(1)]
        )
