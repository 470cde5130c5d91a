"""Masks and weights are the same on one device and on eight, however they are sharded."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import data, masks, models, prune, scores, sharding, train
from tests.programs import launch

MESHES = [(8, 1), (1, 8), (4, 2)]  # data, model
SHAPE = (8, 8, 2)


@pytest.fixture(scope="module")
def network():
    """In float64: devices sum in another order, which must not change the ranking."""
    with jax.enable_x64(True):
        model = models.create(
            "conv2", key=jax.random.key(0), input_shape=SHAPE, width=0.125
        )
        model = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), model)
        draw = np.random.default_rng(0)
        batch = (
            jnp.asarray(draw.normal(size=(16, *SHAPE))),
            jnp.asarray(draw.integers(0, 10, 16), jnp.int32),
        )
        yield model, batch


@pytest.fixture(scope="module")
def scorers(network):
    """Compile the methods once for each way to shard."""
    model, _ = network
    loss_fn = train.loss_function(model)
    flow = models.flow(model)
    methods = {
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
    return {name: jax.jit(method) for name, method in methods.items()}


@pytest.mark.parametrize("method", ["magnitude", "snip", "grasp", "synflow"])
def test_scores_and_masks_are_the_same_on_eight_devices(method, network, scorers):
    model, batch = network
    score = scorers[method]
    mask = masks.select(scores.random(jax.random.key(1), model.params), 0.5)
    want = score(model.params, batch, mask)
    kept = masks.select(want, 0.1, mask=mask)
    for parts, cuts in MESHES:
        mesh = sharding.make_mesh(data=parts, model=cuts)
        sharded = (
            sharding.shard_params(model.params, mesh),
            sharding.shard_batch(batch, mesh),
        )
        sharded_mask = sharding.shard_params(mask, mesh)
        got = score(*sharded, sharded_mask)
        chex.assert_trees_all_close(
            jax.device_get(got), jax.device_get(want), rtol=1e-9
        )
        chosen = masks.select(got, 0.1, mask=sharded_mask)
        chex.assert_trees_all_equal(jax.device_get(chosen), jax.device_get(kept))


def test_pruning_in_rounds_is_the_same_on_eight_devices(network, scorers):
    model, batch = network
    score_fn = lambda batch: (
        lambda params, *, mask: scorers["synflow"](params, batch, mask)
    )
    want, _ = prune.prune(score_fn(batch), model.params, 0.1, rounds=3)
    for parts, cuts in MESHES:
        mesh = sharding.make_mesh(data=parts, model=cuts)
        params = sharding.shard_params(model.params, mesh)
        sharded_batch = sharding.shard_batch(batch, mesh)
        got, _ = prune.prune(score_fn(sharded_batch), params, 0.1, rounds=3)
        chex.assert_trees_all_equal(jax.device_get(got), jax.device_get(want))


def test_a_level_is_the_same_on_eight_devices(tmp_path):
    """Training, augmentation, evaluation, pruning and rewinding of a Model."""
    # Compiled without the options of conftest.py.
    launch.run("train_on_eight_devices", tmp_path, xla_flags="")
    one, eight = (dict(np.load(tmp_path / f"{devices}.npz")) for devices in (1, 8))
    assert one.keys() == eight.keys()
    for name, array in one.items():
        np.testing.assert_allclose(eight[name], array, rtol=1e-8, atol=1e-10)


def test_a_mesh_that_does_not_divide_a_batch_is_refused(network):
    model, _ = network
    mesh = sharding.make_mesh(data=8)
    images, labels = jnp.zeros((20, *SHAPE), jnp.uint8), jnp.zeros(20, jnp.int32)
    images, labels = sharding.replicate((images, labels), mesh)
    preprocessing = data.Preprocessing((0.5, 0.5), (0.3, 0.3))
    image_set = train.ImageSet(images, labels, preprocessing)
    recipe = train.Training(epochs=1.0, batch_size=10, learning_rate=0.05)
    mask = masks.ones_like(model.params)
    with pytest.raises(ValueError, match="of 10 examples can't be split into 8 equal"):
        train.fit(model, mask, image_set, recipe, jax.random.key(0))


@pytest.mark.parametrize("ties", ["exact", "reference"])
def test_selecting_never_gathers_the_scores(ties):
    """In the compiled program, devices exchange nothing but counts."""
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
    assert program is not None
    exchanges = re.findall(
        r"= (\S+) (all-\w+|collective-\w+|reduce-scatter)[.(]", program
    )
    assert exchanges
    for shape, operation in exchanges:  # at most a few counts per device
        assert operation in ("all-reduce", "all-gather"), f"{operation} of {shape}"
        for dims in re.findall(r"\[([\d,]*)\]", shape):
            size = np.prod([int(n) for n in dims.split(",") if n], initial=1)
            assert size <= 4 * 8, f"{operation} of {shape}"
    chosen = compiled(scored)
    assert {len(leaf.sharding.device_set) for leaf in chosen.values()} == {8}
    assert not any(leaf.is_fully_replicated for leaf in chosen.values())
    want = masks.select(jax.device_get(scored), 0.1, ties=ties)
    chex.assert_trees_all_equal(jax.device_get(chosen), jax.device_get(want))


def test_impossible_meshes_and_batches_are_refused():
    with pytest.raises(
        ValueError, match="data=3 and model=4 needs 12 devices, but JAX has"
    ):
        sharding.make_mesh(data=3, model=4)
    with pytest.raises(ValueError, match="of 6 examples can't be split into 8 equal"):
        sharding.shard_batch(jnp.ones((6, 2)), sharding.make_mesh(data=8))
