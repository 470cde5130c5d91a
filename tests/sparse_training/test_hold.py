"""`sparse_training.hold_pruned` keeps pruned weights at zero in any optax training loop."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprune import checkpoint, masks, sparse_training

# As Any: optax annotates states and updates with unions, which cannot be indexed.
hold_pruned: Any = sparse_training.hold_pruned

PARAMS = {
    "a": {"kernel": jnp.array([[1.0, -2.0], [3.0, 4.0]])},
    "b": {"kernel": jnp.array([[5.0, 6.0], [-7.0, 8.0]])},
}
DIAGONAL = jax.tree.map(lambda leaf: jnp.eye(2, dtype=bool), PARAMS)
OFF_DIAGONAL = jax.tree.map(jnp.logical_not, DIAGONAL)


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Optax promotes the type of its step count, which the strict setting refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def train(optimizer: Any, params: Any, steps: int, state: Any = None) -> Any:
    """Run a plain optax loop. Return the parameters, the state and the number of traces."""
    state = optimizer.init(params) if state is None else state
    traces = 0

    @jax.jit
    def step(params, state):
        nonlocal traces
        traces += 1
        gradients = jax.tree.map(lambda leaf: 1.0 + 0.1 * jnp.cos(leaf), fast(params))
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state, traces


def fast(params: Any) -> Any:
    """Return the parameters that gradients are taken of."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def assert_held(params, mask, before=PARAMS):
    """Check that pruned weights are exactly zero and kept weights have moved."""
    for got, start, kept in zip(
        *map(jax.tree.leaves, (params, before, mask)), strict=True
    ):
        assert not bool(jnp.where(kept, 0.0, got).any())
        assert bool(jnp.where(kept, got != start, True).all())


OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "nesterov": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(0.1, weight_decay=0.5),
    "decay": optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1, momentum=0.9)),
    "clip": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_plain_loop_works_unchanged_and_compiles_once(name):
    optimizer = hold_pruned(OPTIMIZERS[name], DIAGONAL)
    params, _, traces = train(optimizer, PARAMS, steps=4)
    assert_held(params, DIAGONAL)
    assert traces == 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_momentum_from_before_does_not_move_newly_pruned_weights(name):
    optimizer = hold_pruned(OPTIMIZERS[name])
    params, state, _ = train(optimizer, PARAMS, steps=3)
    state = state._replace(mask=DIAGONAL)
    params, _, _ = train(optimizer, params, steps=3, state=state)
    assert_held(params, DIAGONAL)


# Each function takes a mask and returns a complete transformation.
WRAPPERS = {
    "masked": lambda mask: optax.masked(
        hold_pruned(optax.sgd(0.1), mask), {"a": True, "b": False}
    ),
    "multi_transform": lambda mask: optax.multi_transform(
        {
            "first": hold_pruned(optax.sgd(0.1), mask),
            "second": hold_pruned(optax.adam(0.1), mask),
        },
        {"a": "first", "b": "second"},
    ),
    "MultiSteps": lambda mask: optax.MultiSteps(
        hold_pruned(optax.sgd(0.1), mask), every_k_schedule=2
    ),
    "inject_hyperparams": lambda mask: optax.inject_hyperparams(
        lambda learning_rate: hold_pruned(optax.sgd(learning_rate), mask)
    )(learning_rate=0.1),
    "inject_hyperparams of hold_pruned": lambda mask: optax.inject_hyperparams(
        hold_pruned
    )(optax.sgd(0.1), mask),
    "apply_if_finite": lambda mask: optax.apply_if_finite(
        hold_pruned(optax.sgd(0.1), mask), max_consecutive_errors=3
    ),
    "lookahead": lambda mask: optax.lookahead(
        hold_pruned(optax.sgd(0.1), mask), 2, slow_step_size=0.5
    ),
    "lookahead with reset": lambda mask: optax.lookahead(
        hold_pruned(optax.sgd(0.1, momentum=0.9), mask),
        2,
        slow_step_size=0.5,
        reset_state=True,
    ),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_it_works_inside_the_wrappers_of_optax(name):
    optimizer = WRAPPERS[name](DIAGONAL)
    params: Any = PARAMS
    if name.startswith("lookahead"):
        params = optax.LookaheadParams.init_synced(masks.apply(PARAMS, DIAGONAL))
    params, _, traces = train(optimizer, params, steps=4)
    # optax's reset turns the bools of the mask into integers, once.
    assert traces == (2 if name == "lookahead with reset" else 1)
    if name == "masked":  # optax passes the gradients of "b" through
        assert_held(
            params["a"]["kernel"], DIAGONAL["a"]["kernel"], PARAMS["a"]["kernel"]
        )
        return
    for part in (params.fast, params.slow) if name.startswith("look") else (params,):
        assert_held(part, DIAGONAL)


def test_gradients_are_masked_before_the_inner_transformation():
    # Kept gradients (3, 4) have the norm 5. With the pruned gradient 12 it would be 13.
    optimizer = hold_pruned(
        optax.clip_by_global_norm(1.0), {"w": jnp.array([True, False, True])}
    )
    params = {"w": jnp.zeros(3)}
    gradients = {"w": jnp.array([3.0, 12.0, 4.0])}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], [3 / 5, 0, 4 / 5], rtol=1e-6)


def test_a_pruned_weight_becomes_zero_with_the_first_update():
    optimizer = hold_pruned(optax.sgd(0.5), DIAGONAL)
    params, _, _ = train(optimizer, PARAMS, steps=1)
    assert_held(params, DIAGONAL)
    with pytest.raises(
        ValueError, match=r"needs the parameters.*update\(gradients, st"
    ):
        optimizer.update(PARAMS, optimizer.init(PARAMS))


def test_a_narrow_gradient_leaves_no_rest_of_a_pruned_weight():
    params = {"w": jnp.array([1.001, 3.14159])}
    optimizer = hold_pruned(optax.sgd(0.1), {"w": jnp.array([True, False])})
    gradients = {"w": jnp.ones(2, jnp.bfloat16)}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    assert float(optax.apply_updates(params, updates)["w"][1]) == 0


def test_what_is_no_optimizer_or_no_mask_is_refused():
    with pytest.raises(
        TypeError, match="inner is a function. Pass an optax transformat"
    ):
        hold_pruned(optax.adam)  # pyright: ignore
    optimizer = hold_pruned(optax.sgd(0.1))
    state = optimizer.init(PARAMS)._replace(mask=PARAMS)
    with pytest.raises(TypeError, match="mask has dtype float32 at"):
        optimizer.update(PARAMS, state, PARAMS)


def test_a_mask_passed_to_update_replaces_that_of_the_state_and_does_not_recompile():
    optimizer = hold_pruned(optax.sgd(0.1, momentum=0.9))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state, mask):
        updates, state = optimizer.update(params, state, params, mask=mask)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, optimizer.init(PARAMS)
    for mask in (DIAGONAL, OFF_DIAGONAL, masks.ones_like(PARAMS), DIAGONAL):
        params, state = step(params, state, mask)
        chex.assert_trees_all_equal(state.mask, mask)
    assert_held(params, DIAGONAL)
    # The next update without a mask uses the last one.
    params, state, _ = train(optimizer, params, steps=1, state=state)
    assert_held(params, DIAGONAL)


def test_a_new_mask_in_the_state_does_not_recompile():
    optimizer = hold_pruned(optax.adam(0.1))
    step = jax.jit(chex.assert_max_traces(optimizer.update, n=1))
    state = optimizer.init(PARAMS)
    for mask in (DIAGONAL, OFF_DIAGONAL, DIAGONAL):
        _, state = step(PARAMS, state._replace(mask=mask), PARAMS)


def test_a_step_may_donate_the_state_and_leaves_the_users_mask_alone():
    mask = jax.tree.map(jnp.copy, DIAGONAL)
    optimizer = hold_pruned(optax.sgd(0.1), mask)
    step = jax.jit(optimizer.update, donate_argnames="state")
    step(PARAMS, optimizer.init(PARAMS), PARAMS)
    chex.assert_trees_all_equal(mask, DIAGONAL)


def test_a_mask_that_does_not_mirror_the_parameters_is_refused():
    sentence = r"mask has shape \(3,\) at 'b/kernel', where the parameter has \(2, 2\)"
    wrong = {**DIAGONAL, "b": {"kernel": jnp.ones(3, bool)}}
    with pytest.raises(ValueError, match=sentence):
        hold_pruned(optax.sgd(0.1), wrong).init(PARAMS)
    optimizer = hold_pruned(optax.sgd(0.1))
    state = optimizer.init(PARAMS)
    with pytest.raises(ValueError, match=sentence):
        optimizer.update(PARAMS, state, PARAMS, mask=wrong)
    with pytest.raises(ValueError, match="mask has no leaf at 'b/kernel'"):
        optimizer.update(PARAMS, state, PARAMS, mask={"a": DIAGONAL["a"]})
    floats = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), DIAGONAL)
    with pytest.raises(TypeError, match="mask has dtype float32 at 'a/kernel'.*m != 0"):
        optimizer.update(PARAMS, state, PARAMS, mask=floats)


def test_the_state_is_restored_from_a_checkpoint(tmp_path):
    optimizer = hold_pruned(optax.adamw(0.1), DIAGONAL)
    params, state, _ = train(optimizer, PARAMS, steps=2)
    checkpoint.save(tmp_path / "state", state)
    # The mask of `like` is another one: that of the file counts.
    like = hold_pruned(optax.adamw(0.1)).init(PARAMS)
    restored = checkpoint.load(tmp_path / "state", like=like)
    chex.assert_trees_all_equal(restored, state)
    want, _, _ = train(optimizer, params, steps=1, state=state)
    got, _, _ = train(hold_pruned(optax.adamw(0.1)), params, steps=1, state=restored)
    chex.assert_trees_all_equal(got, want)
    assert_held(got, DIAGONAL)


def test_keys_and_counters_among_the_parameters_are_left_alone():
    params = {"count": jnp.int32(3), "w": jnp.ones((2, 2))}
    mask = {"count": jnp.array(False), "w": jnp.eye(2, dtype=bool)}
    optimizer = hold_pruned(optax.identity(), mask)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert updates["count"] == 3
    assert updates["w"].tolist() == [[1, -1], [-1, 1]]
