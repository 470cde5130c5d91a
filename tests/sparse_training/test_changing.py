"""Wrappers that change their mask: what all of them promise, and each against its paper."""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from jaxprune import checkpoint, masks, scores, sharding, sparse_training, tree
from jaxprune.sparse_training import Steps

PARAMS = {
    "a": {"kernel": jax.random.normal(jax.random.key(1), (6, 10)), "bias": jnp.zeros(10)},
    "b": {"kernel": jax.random.normal(jax.random.key(2), (10, 3))},
}  # fmt: skip
INPUTS = jax.random.normal(jax.random.key(3), (8, 6))
TARGETS = jax.random.normal(jax.random.key(4), (8, 3))
STEPS = Steps(stop=5, every=2)  # changes after 2, 4 and 5 updates
DENSITY = 0.4
SIZE = 90


def loss(params, inputs=INPUTS):
    hidden = inputs @ params["a"]["kernel"] + params["a"]["bias"].reshape(1, -1)
    return jnp.square(jax.nn.relu(hidden) @ params["b"]["kernel"] - TARGETS).mean()


METHODS = {
    "static": lambda inner: sparse_training.static(jax.random.key(0), inner, DENSITY),
    "set": lambda inner: sparse_training.set(jax.random.key(0), inner, DENSITY, STEPS),
    "rigl": lambda inner: sparse_training.rigl(
        jax.random.key(0), inner, DENSITY, STEPS
    ),
    "gradual": lambda inner: sparse_training.gradual(inner, DENSITY, STEPS),
    "gradual with a budget": lambda inner: sparse_training.gradual(
        inner, {"a/kernel": 0.3, "b/kernel": 0.6}, STEPS, score=scores.magnitude
    ),
    "acdc": lambda inner: sparse_training.acdc(inner, DENSITY, STEPS),
}


def step(optimizer, params, state):
    # optax raises a float to an int32 power.
    with jax.numpy_dtype_promotion("standard"):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


def run(optimizer, number, params=PARAMS, state=None):
    """Train in a loop; return the last parameters and state, and all masks."""

    traces = []

    @jax.jit
    def update(params, state):
        traces.append(1)
        return step(optimizer, params, state)

    state = optimizer.init(params) if state is None else state
    history = []
    for _ in range(number):
        params, state = update(params, state)
        history.append(state.mask)
    assert len(traces) == 1
    return params, state, history


@pytest.mark.parametrize("method", METHODS)
def test_pruned_weights_are_zero_and_counts_exact_in_a_loop_and_in_a_scan(method):
    optimizer = METHODS[method](
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
    )
    params, state, history = run(optimizer, 7)
    chex.assert_trees_all_equal(params, masks.apply(params, state.mask))
    budget = {
        **masks.erk(PARAMS, DENSITY),
        **({"a/kernel": 0.3, "b/kernel": 0.6} if "budget" in method else {}),
    }
    if method in ("gradual", "acdc"):
        assert masks.count(state.mask) == masks.num_kept(DENSITY, SIZE)
    else:
        for mask in history[-1:] if "gradual" in method else history:
            for name, size in (("a/kernel", 60), ("b/kernel", 30)):
                leaf = tree.by_name(mask)[name]
                assert int(leaf.sum()) == masks.num_kept(budget[name], size)
    assert all(mask["a"]["bias"].all() for mask in history)

    if method not in ("rigl", "acdc"):
        return

    def body(carry, _):
        return step(optimizer, *carry), None

    start = (PARAMS, optimizer.init(PARAMS))
    (scanned, scanned_state), _ = jax.lax.scan(body, start, None, length=7)
    chex.assert_trees_all_equal(scanned_state.mask, state.mask)
    chex.assert_trees_all_close(scanned, params, rtol=1e-4, atol=1e-6)


def test_training_continues_from_a_checkpoint(tmp_path):
    optimizer = METHODS["set"](optax.sgd(0.1, momentum=0.9))
    params, state, _ = run(optimizer, 3)
    checkpoint.save(tmp_path / "state", {"params": params, "state": state})
    like = {"params": PARAMS, "state": optimizer.init(PARAMS)}
    loaded = checkpoint.load(tmp_path / "state", like=like)
    chex.assert_trees_all_equal(loaded["state"], state)
    want = run(optimizer, 4, params, state)
    chex.assert_trees_all_equal(
        run(optimizer, 4, loaded["params"], loaded["state"]), want
    )


def test_the_mask_is_the_same_on_eight_devices():
    optimizer = METHODS["rigl"](optax.sgd(0.1, momentum=0.9))
    state = optimizer.init(PARAMS)._replace(step=jnp.int32(2))
    gradients = jax.grad(loss)(PARAMS)
    _, want = optimizer.update(gradients, state, PARAMS)
    assert not bool(jnp.all(want.mask["a"]["kernel"] == state.mask["a"]["kernel"]))
    mesh = sharding.make_mesh(data=4, model=2)
    sharded = sharding.shard_params((gradients, state, PARAMS), mesh)
    _, got = jax.jit(optimizer.update)(*sharded)
    chex.assert_trees_all_equal(jax.device_get(got.mask), jax.device_get(want.mask))


def change_once(method, params, gradients, **options):
    """Return the masks before and after the first change, with an optimizer that rests."""
    optimizer = getattr(sparse_training, method)(
        jax.random.key(5), optax.sgd(0.0), {"w": 0.5}, Steps(stop=4, every=1), **options
    )
    state = optimizer.init(params)
    before = state.mask["w"]
    params = masks.apply(params, state.mask)
    for _ in range(2):
        _, state = optimizer.update(gradients, state, params)
    return np.asarray(before), np.asarray(state.mask["w"])


def test_rigl_drops_the_smallest_weights_and_grows_those_of_the_largest_gradients():
    draw = np.random.default_rng(0)
    w, g = draw.normal(size=(2, 8, 10)).astype(np.float32)
    before, after = change_once("rigl", {"w": jnp.asarray(w)}, {"w": jnp.asarray(g)})
    # The first of 4 changes replaces 0.3 / 2 (1 + cos(pi / 4)) of 40 weights: 10.2.
    number = math.floor(0.15 * (1 + math.cos(math.pi / 4)) * 40)
    assert number == 10
    want = before.copy().ravel()
    kept = np.flatnonzero(want)
    want[kept[np.argsort(np.abs(w).ravel()[kept])[:number]]] = False
    free = np.flatnonzero(~want)
    want[free[np.argsort(-np.abs(g).ravel()[free])[:number]]] = True
    np.testing.assert_array_equal(after.ravel(), want)


def test_set_grows_weights_whatever_their_gradients():
    draw = np.random.default_rng(0)
    w, g = draw.normal(size=(2, 8, 10)).astype(np.float32)
    before, after = change_once("set", {"w": jnp.asarray(w)}, {"w": jnp.asarray(g)})
    other = {"w": jnp.asarray(draw.normal(size=(8, 10)), jnp.float32)}
    _, again = change_once("set", {"w": jnp.asarray(w)}, other)
    np.testing.assert_array_equal(after, again)  # whatever the gradients
    _, by_gradient = change_once("rigl", {"w": jnp.asarray(w)}, {"w": jnp.asarray(g)})
    _, by_other = change_once("rigl", {"w": jnp.asarray(w)}, other)
    assert (by_gradient != by_other).any()
    dropped = before & ~after
    # Some of the 10 that are dropped may grow back at once.
    assert after.sum() == before.sum() == 40
    assert 5 <= dropped.sum() == (after & ~before).sum() <= 10
    smallest = np.sort(np.abs(w)[before])[:10]
    assert np.isin(np.abs(w)[dropped], smallest).all()


def test_nothing_changes_with_a_fraction_of_zero():
    draw = np.random.default_rng(0)
    w, g = draw.normal(size=(2, 8, 10)).astype(np.float32)
    for method in ("rigl", "set"):
        before, after = change_once(
            method, {"w": jnp.asarray(w)}, {"w": jnp.asarray(g)}, fraction=0.0
        )
        np.testing.assert_array_equal(before, after)


STATES = {
    "adam": lambda: optax.adam(0.1),
    "masked": lambda: optax.masked(optax.adam(0.1), {"a": True, "b": False}),
    "multi_transform": lambda: optax.multi_transform(
        {"a": optax.adam(0.1), "b": optax.sgd(0.1)}, {"a": "a", "b": "b"}
    ),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(0.1),
}


@pytest.mark.parametrize("name", STATES)
def test_a_weight_that_grows_back_starts_with_the_state_of_a_fresh_optimizer(name):
    params = {"a": jnp.array([[1.0, 3.0], [4.0, 2.0]]), "b": jnp.full((2, 2), 2.5)}
    gradients = {"a": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "b": jnp.ones((2, 2))}
    inner: Any = STATES[name]()
    optimizer = sparse_training.acdc(inner, 0.5, Steps(stop=4, every=1))
    state = optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(2):  # after the second one, half of the weights are pruned
            _, state = optimizer.update(gradients, state, params)
        pruned = ~state.mask["a"]
        assert 0 < pruned.sum() < 4
        _, state = optimizer.update(gradients, state, params)
    assert state.mask["a"].all()
    moments = {n: x for n, x in tree.by_name(state.inner).items() if n.endswith("mu/a")}
    (moment,) = moments.values()
    # Of a fresh one after one update: (1 - 0.9) g.
    np.testing.assert_allclose(moment[pruned], 0.1 * gradients["a"][pruned], rtol=1e-5)
    np.testing.assert_allclose(
        moment[~pruned], (1 - 0.9**3) * gradients["a"][~pruned], rtol=1e-5
    )


def test_gradual_pruning_follows_its_schedule():
    params = {"w": jnp.arange(1.0, 1001.0).reshape(10, 100)}
    zeros = jax.tree.map(jnp.zeros_like, params)

    def counts(**options):
        optimizer = sparse_training.gradual(
            optax.identity(), 0.1, Steps(stop=9, every=2, start=1), **options
        )
        _, found = jax.lax.scan(
            lambda state, _: (
                (new := optimizer.update(zeros, state, params)[1]),
                new.mask["w"].sum(),
            ),
            optimizer.init(params),
            None,
            length=12,
        )
        return found.tolist()

    # Eq. 1 of the paper: 1 - 0.9 (1 - (1 - k / 4)^3) after k of 4 changes.
    cubic = [1000] * 3 + [480, 480, 213, 213, 115, 115, 100, 100, 100]
    assert counts() == cubic
    assert 1000 - cubic[5] == pytest.approx(0.875 * 900, abs=1)  # half of the changes
    listed = [1000] * 3 + [750, 750, 500, 500, 250, 250, 100, 100, 100]
    assert counts(schedule=[0.75, 0.5, 0.25, 0.1]) == listed


def test_the_last_change_comes_at_stop_even_if_no_interval_ends_there():
    assert STEPS.number == 3
    due = [bool(STEPS.is_due(jnp.int32(i))) for i in range(8)]
    assert due == [False, False, True, False, True, True, False, False]


def test_flax_optimizers_and_train_states_need_no_change():
    model = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
    tx = sparse_training.rigl(
        jax.random.key(0), optax.sgd(0.1, momentum=0.9), 0.5, STEPS
    )
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def update(model, optimizer):
        gradients = nnx.grad(lambda model: jnp.square(model(INPUTS) - TARGETS).mean())
        optimizer.update(model, gradients(model))

    for _ in range(4):
        update(model, optimizer)
    assert int((model.kernel[...] != 0).sum()) == 9
    assert model.bias[...].all()
    apply_fn = lambda params: None
    state = TrainState.create(apply_fn=apply_fn, params=PARAMS, tx=METHODS["set"](optax.sgd(0.1)))  # fmt: skip
    for _ in range(4):
        state = state.apply_gradients(grads=jax.grad(loss)(state.params))
    mask = state.opt_state.mask  # pyright: ignore
    chex.assert_trees_all_equal(state.params, masks.apply(state.params, mask))


WRONG = {
    "steps are whole numbers of updates.*every=0, stop=3": lambda: Steps(3, every=0),
    "steps are whole numbers.*start=5, every=1, stop=5": lambda: Steps(5, 1, 5),
    "got start=0, every=100, stop=2.5": lambda: Steps(2.5),  # pyright: ignore
    "steps is a int. Pass sparse_training.Steps": lambda: sparse_training.acdc(
        optax.sgd(0.1),
        0.5,
        100,  # pyright: ignore
    ),
    "fraction is the share.*got 30": lambda: sparse_training.rigl(
        jax.random.key(0), optax.sgd(0.1), 0.5, STEPS, fraction=30
    ),
    "key is 0, not a random key": lambda: sparse_training.set(
        0, optax.sgd(0.1), 0.5, STEPS
    ),
    "density is the fraction of prunable weights to keep": lambda: (
        sparse_training.gradual(optax.sgd(0.1), 90, STEPS)
    ),
    "schedule lists the densities": lambda: sparse_training.gradual(
        optax.sgd(0.1), 0.1, STEPS, schedule=[0.5, 0.1]
    ),
    "score is a str. Pass a function": lambda: sparse_training.gradual(
        optax.sgd(0.1), 0.1, STEPS, score="magnitude"
    ),
    "inner is a function. Pass an optax": lambda: sparse_training.acdc(
        optax.adam, 0.1, STEPS
    ),
    "the budget has nothing for 'b/kernel'": lambda: sparse_training.rigl(
        jax.random.key(0), optax.sgd(0.1), {"a/kernel": 0.5}, STEPS
    ).init(PARAMS),
    "which rise, but pruned weights stay": lambda: sparse_training.gradual(
        optax.sgd(0.1), 0.3, STEPS, schedule=[0.2, 0.2, 0.3]
    ),
    "no leaf of params is prunable": lambda: sparse_training.acdc(
        optax.sgd(0.1), 0.3, STEPS
    ).init({"bias": jnp.ones(3)}),
    "steps is a float. Pass": lambda: sparse_training.gradual(
        optax.sgd(0.1),
        STEPS,
        0.3,  # pyright: ignore
    ),
    "the budget is empty": lambda: sparse_training.gradual(optax.sgd(0.1), {}, STEPS),
    "the budget names 'c', which is no": lambda: sparse_training.gradual(
        optax.sgd(0.1), {"a/kernel": 0.5, "b/kernel": 0.5, "c": 1.0}, STEPS
    ).init(PARAMS),
    "needs the parameters": lambda: METHODS["rigl"](optax.sgd(0.1)).update(
        PARAMS, METHODS["rigl"](optax.sgd(0.1)).init(PARAMS)
    ),
    "changes its mask by itself": lambda: METHODS["acdc"](optax.sgd(0.1)).update(
        PARAMS,
        METHODS["acdc"](optax.sgd(0.1)).init(PARAMS),
        PARAMS,
        mask=masks.ones_like(PARAMS),
    ),
}


def test_a_bool_leaf_among_floats_is_a_buffer_and_does_not_count():
    params = {"w": PARAMS["a"]["kernel"], "causal": jnp.ones((20, 20), bool)}
    assert tree.prunable(params) == {"w": True, "causal": False}
    optimizer = sparse_training.gradual(optax.identity(), 0.5, Steps(1, 1))
    state = optimizer.init(params)._replace(step=jnp.int32(1))
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, state = optimizer.update(zeros, state, params)
    assert int(state.mask["w"].sum()) == 30


def test_a_leaf_without_entries_is_left_alone():
    params = {"w": PARAMS["a"]["kernel"], "none": jnp.zeros((0, 4))}
    optimizer = METHODS["set"](optax.identity())
    state = optimizer.init(params)._replace(step=jnp.int32(2))
    _, state = optimizer.update(params, state, params)
    assert int(state.mask["w"].sum()) == masks.num_kept(DENSITY, 60)


@pytest.mark.parametrize("sentence", WRONG)
def test_invalid_arguments_get_a_sentence(sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        WRONG[sentence]()
