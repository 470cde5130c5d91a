"""Counting, freezing, schedules, controls and health of masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st

from jaxprune import masks, models, scores, tree


def test_counts_are_exact_above_2_to_the_24():
    # float32 can't count past 16,777,216.
    mask = {"w": jnp.ones((4097, 4097), bool)}
    assert masks.count(mask) == 4097 * 4097


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(0.1),
        optax.sgd(0.1, momentum=0.9, nesterov=True),
        optax.adamw(0.1, weight_decay=0.5),
        optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1, momentum=0.9)),
    ],
    ids=["adam", "nesterov", "adamw", "decay"],
)
def test_pruned_weights_stay_zero_under_every_optimizer(optimizer):
    # The mask changes on the way: momentum gathered before must not move what it
    # prunes.
    with jax.numpy_dtype_promotion("standard"):  # optax promotes its step count
        optimizer = optax.chain(optimizer, masks.freeze())
        params = {"w": jnp.array([[1.0, -2.0], [3.0, 4.0]])}
        state, mask = optimizer.init(params), masks.ones_like(params)
        for step in range(6):
            if step == 3:
                mask = {"w": jnp.array([[True, False], [False, True]])}
                params = masks.apply(params, mask)
            updates, state = optimizer.update(
                jax.tree.map(jnp.cos, params), state, params, mask=mask
            )
            params = optax.apply_updates(params, updates)
    assert params["w"][0, 1] == 0
    assert params["w"][1, 0] == 0
    assert params["w"][0, 0] != 0


def test_freezing_under_a_new_mask_traces_nothing_anew():
    optimizer = optax.chain(optax.trace(0.9), masks.freeze())
    params = {"w": jnp.ones((2, 2))}
    traces = 0

    @jax.jit
    def update(state, mask):
        nonlocal traces
        traces += 1
        return optimizer.update(params, state, params, mask=mask)

    for level in range(5):
        update(optimizer.init(params), {"w": jnp.arange(4).reshape(2, 2) >= level})
    assert traces == 1


@given(
    c=st.floats(0.01, 3),
    rounds=st.integers(1, 50),
    schedule=st.sampled_from(["exponential", "linear"]),
)
def test_schedules_fall_to_the_density_asked_for(c, rounds, schedule):
    densities = masks.densities(10**-c, rounds, schedule)
    assert len(densities) == rounds
    assert densities[-1] == 10**-c
    assert all(a > b for a, b in zip([1.0, *densities], densities, strict=False))


def test_bad_schedules_are_refused():
    with pytest.raises(ValueError, match="rounds is the number.*got 0"):
        masks.densities(0.5, 0)
    with pytest.raises(ValueError, match="schedule 'cosine' is not known"):
        masks.densities(0.5, 2, "cosine")


def test_density_without_prunable_weights_is_refused():
    with pytest.raises(ValueError, match="no prunable weight"):
        masks.density({"bias": jnp.ones(3, bool)})


def test_layers_are_listed_in_network_order():
    params = {f"conv{i}": jnp.ones((1, 1)) for i in range(1, 12)}
    assert list(tree.by_name(params)) == [f"conv{i}" for i in range(1, 12)]


@given(seed=st.integers(0, 2**31 - 1))
def test_shuffling_keeps_the_density_of_every_layer(seed):
    mask = {"a": jnp.arange(12).reshape(3, 4) < 5, "bias": jnp.array([True, True])}
    shuffled = masks.shuffle(jax.random.key(seed), mask)
    assert int(shuffled["a"].sum()) == 5
    assert bool(shuffled["bias"].all())


def test_inverted_scores_keep_the_complement():
    scored = {"w": jnp.arange(6.0).reshape(2, 3)}
    kept, dropped = (masks.select(s, 0.5)["w"] for s in (scored, masks.invert(scored)))
    assert (np.asarray(kept) ^ np.asarray(dropped)).all()


def test_reinitialising_draws_kernels_anew_and_nothing_else():
    def init(key):
        bias, kernel = jax.random.split(key)
        return {
            "bias": jax.random.normal(bias, (2,)),
            "w": jax.random.normal(kernel, (2, 2)),
        }

    params = init(jax.random.key(0))
    fresh = masks.reinitialize(init, jax.random.key(1), params)
    assert bool((fresh["bias"] == params["bias"]).all())
    assert not bool((fresh["w"] == params["w"]).any())


def chain(params, x):
    return jax.nn.relu(x @ params["fc1"]) @ params["fc2"]


def test_effective_density_by_hand():
    # Unit 1 has an input and no output, unit 2 an output and no input: only unit 0 is
    # live.
    mask = {
        "fc1": jnp.array([[True, True, False], [True, False, False]]),
        "fc2": jnp.array([[True], [False], [True]]),
    }
    health = masks.health(mask, chain, jnp.ones((1, 2)))
    assert health.densities == {"fc1": 3 / 6, "fc2": 2 / 3}
    assert health.effective == {"fc1": 2 / 6, "fc2": 1 / 3}
    assert health.density == 5 / 9
    assert health.effective_density == 3 / 9
    assert health.collapse is None


def test_an_empty_layer_is_a_warning_and_no_crash():
    mask = {"fc1": jnp.ones((2, 3), bool), "fc2": jnp.zeros((3, 1), bool)}
    health = masks.health(mask, chain, jnp.ones((1, 2)))
    assert health.empty == ("fc2",)
    assert health.effective_density == 0
    assert "layers without a weight: fc2" in health.collapse.message


def test_a_cut_without_an_empty_layer_is_a_warning_too():
    mask = {
        "fc1": jnp.array([[True, False]]),
        "fc2": jnp.array([[False], [True]]),
    }
    health = masks.health(mask, chain, jnp.ones((1, 1)))
    assert health.empty == ()
    assert "no path of kept weights" in health.collapse.message


def test_health_counts_paths_that_overflow_float32():
    model = models.create(
        "vgg11",
        key=jax.random.key(0),
        input_shape=(8, 8, 1),
        width=0.5,
        batch_norm=False,
    )
    mask = masks.select(scores.magnitude(model.params), 0.9)
    inputs = jax.random.uniform(jax.random.key(1), (4, 8, 8, 1), minval=0.5)
    health = masks.health(mask, models.flow(model), inputs)
    # Maps of one pixel use one tap of nine; all others but a few are live.
    assert health.effective["conv1/kernel"] > 0.85
    assert health.collapse is None
