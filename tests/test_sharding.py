"""The same masks and weights on one device and on eight, whatever is split or spread."""

import dataclasses
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import data, imp, masks, models, prune, scores, sharding, train

MESHES = [(8, 1), (1, 8), (4, 2)]  # data, model
SHAPE = (8, 8, 2)


@pytest.fixture(scope="module")
def network():
    """In float64: the devices add in another order, and no score may change places."""
    with jax.enable_x64(True):
        model = models.create(
            "conv2", key=jax.random.key(0), input_shape=SHAPE, width=0.125
        )
        wide = lambda leaf: leaf.astype(jnp.float64)
        params, state = jax.tree.map(wide, model[:2])
        draw = np.random.default_rng(0)
        batch = (
            jnp.asarray(draw.normal(size=(16, *SHAPE))),
            jnp.asarray(draw.integers(0, 10, 16), jnp.int32),
        )
        yield dataclasses.replace(model, params=params, state=state), batch


def scorers(model):
    loss_fn = train.loss_function(model.apply, model.state)
    flow = models.flow(model)
    return {
        "magnitude": lambda params, batch, mask: scores.magnitude(params, mask=mask),
        "snip": lambda params, batch, mask: scores.snip(
            loss_fn, params, [batch], mask=mask
        ),
        "grasp": lambda params, batch, mask: scores.grasp(
            loss_fn, params, [batch], mask=mask
        ),
        "synflow": lambda params, batch, mask: scores.synflow(
            flow, params, jnp.ones_like(batch[0]), mask=mask
        ),
    }


@pytest.mark.parametrize("method", ["magnitude", "snip", "grasp", "synflow"])
def test_scores_and_masks_are_the_same_on_eight_devices(method, network):
    model, batch = network
    score = jax.jit(scorers(model)[method])
    mask = masks.select(scores.random(jax.random.key(1), model.params), 0.5)
    want = score(model.params, batch, mask)
    kept = masks.select(want, 0.1, mask=mask)
    for parts, cuts in MESHES:
        mesh = sharding.make_mesh(data=parts, model=cuts)
        here = sharding.shard_params(model.params, mesh), sharding.shard_batch(batch, mesh)
        there = sharding.shard_params(mask, mesh)
        got = score(*here, there)
        chex.assert_trees_all_close(
            jax.device_get(got), jax.device_get(want), rtol=1e-9
        )
        chosen = masks.select(got, 0.1, mask=there)
        chex.assert_trees_all_equal(jax.device_get(chosen), jax.device_get(kept))


@pytest.mark.parametrize(("parts", "cuts"), MESHES)
def test_pruning_in_rounds_is_the_same_on_eight_devices(parts, cuts, network):
    model, batch = network
    mesh = sharding.make_mesh(data=parts, model=cuts)
    score = jax.jit(scorers(model)["synflow"])
    score_fn = lambda batch: lambda params, mask, key: score(params, batch, mask)
    want, _ = prune.prune(score_fn(batch), model.params, 0.1, rounds=3)
    here = sharding.shard_params(model.params, mesh)
    got, _ = prune.prune(score_fn(sharding.shard_batch(batch, mesh)), here, 0.1, rounds=3)
    chex.assert_trees_all_equal(jax.device_get(got), jax.device_get(want))


def a_level(model, mesh):
    """Train and prune one level of IMP; on a mesh, or on one device without it."""
    draw = np.random.default_rng(1)
    images = jnp.asarray(draw.integers(0, 255, (64, *SHAPE)), jnp.uint8)
    labels = jnp.asarray(draw.integers(0, 10, 64), jnp.int32)
    how = data.Preprocessing((0.5, 0.5), (0.3, 0.3), 1, True)
    recipe = train.Training(
        epochs=2.0, batch_size=16, learning_rate=0.05, precision="float64"
    )
    copy, spread = (
        (lambda arrays: arrays,) * 2
        if mesh is None
        else (
            functools.partial(sharding.replicate, mesh=mesh),
            functools.partial(sharding.shard_params, mesh=mesh),
        )
    )
    pictures = train.ImageSet(copy(images), copy(labels), how)

    def train_fn(params, mask, key, level):
        state = copy(model.state)
        fitted = train.fit(
            model.apply, params, state, mask, pictures, recipe, key, early=2
        )
        found = train.evaluate(model.apply, fitted.params, fitted.state, pictures, 16)
        return imp.Trained(fitted.params, found, fitted.early[0])

    start = imp.init(spread(model.params), jax.random.key(3))
    return imp.step(start, train_fn, 0.2, rewind="early")


@jax.numpy_dtype_promotion("standard")  # Flax promotes in float64
def test_a_level_is_the_same_on_eight_devices(network):
    """Training, augmentation, pruning and rewinding; batches split, weights spread."""
    model, _ = network
    want, seen = a_level(model, None)
    for parts, cuts in MESHES[1:]:
        mesh = sharding.make_mesh(data=parts, model=cuts)
        state, info = a_level(model, mesh)
        kernel = info.trained["conv2"]["kernel"]
        assert len({str(shard.index) for shard in kernel.addressable_shards}) == cuts
        for got, expected in (
            (state.rewind, want.rewind),
            (info.trained, seen.trained),
            (info.metrics, seen.metrics),
        ):
            chex.assert_trees_all_close(
                jax.device_get(got), jax.device_get(expected), rtol=1e-8, atol=1e-10
            )
        chex.assert_trees_all_equal(
            jax.device_get(state.mask), jax.device_get(want.mask)
        )


@pytest.mark.parametrize("ties", ["exact", "reference"])
def test_selecting_never_gathers_the_scores(ties):
    """Read off the compiled program: counts are all that devices tell each other."""
    mesh = sharding.make_mesh(model=8)
    shapes = {"a": (16, 64), "b": (3, 3, 8, 32), "c": (64, 8)}
    scored = sharding.shard_params(
        {
            name: scores.random(jax.random.key(i), {"w": jnp.ones(shape)})["w"]
            for i, (name, shape) in enumerate(shapes.items())
        },
        mesh,
    )
    select = jax.jit(functools.partial(masks.select, density=0.1, ties=ties))
    compiled = select.lower(scored).compile()
    program = compiled.as_text()
    talk = re.findall(r"= (\S+) (all-\w+|collective-\w+|reduce-scatter)[.(]", program)
    assert talk
    for shape, operation in talk:  # at most a few counts of each device
        assert operation in ("all-reduce", "all-gather"), f"{operation} of {shape}"
        for dims in re.findall(r"\[([\d,]*)\]", shape):
            size = np.prod([int(n) for n in dims.split(",") if n], initial=1)
            assert size <= 4 * 8, f"{operation} of {shape}"
    chosen = compiled(scored)
    assert {len(leaf.sharding.device_set) for leaf in chosen.values()} == {8}
    assert not any(leaf.is_fully_replicated for leaf in chosen.values())
    want = masks.select(jax.device_get(scored), 0.1, ties=ties)
    chex.assert_trees_all_equal(jax.device_get(chosen), jax.device_get(want))


def test_a_mesh_that_cannot_be_is_refused():
    with pytest.raises(
        ValueError, match="data=3 and model=4 takes 12 devices, and there"
    ):
        sharding.make_mesh(data=3, model=4)
    with pytest.raises(ValueError, match="of 6 examples can't be split into 8 equal"):
        sharding.shard_batch(jnp.ones((6, 2)), sharding.make_mesh(data=8))
